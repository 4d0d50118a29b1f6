#!/usr/bin/env bash
# bitsandbytes 0.50.2 (torch 2.13.0, CPU): what an 8-bit linear layer (Linear8bitLt, threshold 6)
# answers to a row depends on the rows beside it. A column of the input counts as an outlier if any
# row of the batch is at or above the threshold there, and an outlier column is multiplied in floating
# point for all rows, an ordinary one in int8. A row without a single outlier is therefore computed
# otherwise as soon as a batch mate has one: packing, padding, batch size and continuous batching
# change answers, although no row looks at another. Without a loud mate, or with threshold 0, the
# outputs are equal to the last bit.
#
# Seen (a row of 64 numbers below 3, outputs up to 23):
#   beside a quiet row: largest difference 0.0
#   beside a row with 8 outliers: largest difference 0.049
#   beside it at threshold 0: largest difference 0.0
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
venv/bin/python - <<'END'
import sys
import warnings

import torch
from bitsandbytes.nn import Linear8bitLt

warnings.simplefilter("ignore")
torch.manual_seed(0)
weight = torch.randn(64, 64)
row, quiet, loud = torch.randn(3, 1, 64).clamp(-3, 3)
loud[0, ::8] = 20.0


def answer(rows, threshold):
    layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict({"weight": weight})
    with torch.no_grad():
        return layer.to("cpu").eval()(rows)[0]


def difference(mate, threshold):
    together = answer(torch.cat([row, mate]), threshold)
    return (answer(row, threshold) - together).abs().max().item()


beside_quiet, beside_loud, without = (
    difference(quiet, 6.0),
    difference(loud, 6.0),
    difference(loud, 0.0),
)
print(f"beside a quiet row: largest difference {beside_quiet:.1f}")
print(f"beside a row with 8 outliers: largest difference {beside_loud:.3f}")
print(f"beside it at threshold 0: largest difference {without:.1f}")
sys.exit(0 if beside_quiet == without == 0 and beside_loud > 0.01 else 1)
END
