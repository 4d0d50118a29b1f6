#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset("webdataset", ...)` takes the file endings of the first five samples
# of the first shard for the columns of the whole data set. A sample that has more files loses them
# without an error or a warning, in a map-style data set and with streaming=True. So a shard that
# begins with samples of text alone loses every image of the data set.
#
# Seen: ten samples, the first five with .txt, the others with .txt and .png:
#   map-style  10 rows, columns ['__key__', '__url__', 'txt'], 0 images
#   streaming  10 rows, columns ['__key__', '__url__', 'txt'], 0 images
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pillow==12.0.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import io
import sys
import tarfile

import datasets
from PIL import Image

datasets.disable_progress_bars()
png = io.BytesIO()
Image.new("RGB", (4, 4), "red").save(png, "PNG")

with tarfile.open("shard.tar", "w") as tar:
    for number in range(10):
        files = {"txt": b"words"} if number < 5 else {"txt": b"red", "png": png.getvalue()}
        for ending, content in files.items():
            member = tarfile.TarInfo(f"{number:03}.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

as_seen = True
for streaming in (False, True):
    loaded = datasets.load_dataset(
        "webdataset", data_files="shard.tar", split="train", streaming=streaming
    )
    rows = list(loaded)
    images = sum("png" in row for row in rows)
    name = "streaming" if streaming else "map-style"
    print(f"{name}  {len(rows)} rows, columns {sorted(rows[-1])}, {images} images")
    as_seen = as_seen and len(rows) == 10 and images == 0
sys.exit(0 if as_seen else 1)
END
