#!/usr/bin/env bash
# huggingface_hub 2.4.0: an answer that the hub refuses with is an HfHubHTTPError, which is an OSError; a
# hub that cannot be reached is not. Its HTTP library is httpx2 (no longer requests, whose errors are all
# OSErrors, and not httpx either), whose ConnectError derives from Exception alone. So `except OSError`
# around upload_folder, which served 0.x, lets a missing network through, and `except httpx.HTTPError`
# does, too. Both kinds share httpx2.HTTPError, which is in the bases of HfHubHTTPError.
#
# Seen (huggingface_hub 2.4.0, nothing listening at the address): ConnectError of httpx2, no OSError,
# no httpx.HTTPError; HfHubHTTPError is an OSError and an httpx2.HTTPError
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0 httpx
cat > reach.py <<'END'
import os
import socket

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"

import httpx
from huggingface_hub import create_repo
from huggingface_hub.errors import HfHubHTTPError

try:
    create_repo("someone/adapter", token="none")
except Exception as error:
    kind, bases = type(error), {each.__module__.partition(".")[0] for each in type(error).__mro__}
    shared = next(each for each in HfHubHTTPError.__mro__ if each.__name__ == "HTTPError")
    print(f"seen: {kind.__name__} of {kind.__module__}; OSError: {isinstance(error, OSError)}; "
          f"httpx.HTTPError: {isinstance(error, httpx.HTTPError)}; "
          f"{shared.__module__}.HTTPError: {isinstance(error, shared)}; "
          f"HfHubHTTPError is an OSError: {issubclass(HfHubHTTPError, OSError)}")
    ours = not isinstance(error, (OSError, httpx.HTTPError)) and isinstance(error, shared)
    raise SystemExit(not (ours and issubclass(HfHubHTTPError, OSError)))
raise SystemExit(1)
END
env/bin/python reach.py
