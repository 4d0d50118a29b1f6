#!/usr/bin/env bash
# safetensors 0.8.0: `save_file` writes files that only their owner can read (mode 0600), whatever the
# umask. numpy's own writer and Python's open() follow the umask in the same folder. So a colleague,
# a server under another account or a group on a cluster cannot read a model that was saved.
#
# Seen with umask 022:
#   weights.safetensors 0600
#   weights.npy 0644
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet safetensors==0.8.0 numpy==2.2.6
umask 022
venv/bin/python - <<'END'
import os
import sys

import numpy as np
from safetensors.numpy import save_file

weights = np.zeros(4, np.float32)
save_file({"weights": weights}, "weights.safetensors")
np.save("weights.npy", weights)
modes = {}
for name in ("weights.safetensors", "weights.npy"):
    modes[name] = os.stat(name).st_mode & 0o777
    print(f"{name} {modes[name]:04o}")
sys.exit(modes != {"weights.safetensors": 0o600, "weights.npy": 0o644})
END
