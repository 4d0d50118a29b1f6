#!/usr/bin/env bash
# datasets 5.2.0: the JSON loader keeps a field whose values are of several types as JSON
# (the feature `Json`). Two things about it surprise, on valid input and without a word:
#  1. A text that happens to be JSON itself becomes that JSON: of the answers 1 and "8" the second
#     comes out as the number 8, of {"a": 1} and "null" the second as None. So an answer's type, and
#     with it what it means, depends on what else stands in its file.
#  2. With `with_format("arrow")`, and with `.decode(False)` of a stream, which one calls to keep
#     images undecoded, the texts come out as written JSON: '"two"' with its quotation marks.
#
# Seen:
#   decoded   [1, 'two', 8, None]
#   arrow     ['1', '"two"', '8', 'null']
#   undecoded ['1', '"two"', '8', 'null']
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
venv/bin/python - <<'END'
import json
import sys

import datasets

datasets.disable_progress_bars()
with open("rows.jsonl", "w") as file:
    for answer in (1, "two", "8", "null"):
        file.write(json.dumps({"answer": answer}) + "\n")

load = {"path": "json", "data_files": "rows.jsonl", "split": "train"}
table = datasets.load_dataset(**load)
stream = datasets.load_dataset(**load, streaming=True)
seen = {
    "decoded": list(table["answer"]),
    "arrow": table.with_format("arrow")[:]["answer"].to_pylist(),
    "undecoded": [row["answer"] for row in stream.decode(False)],
}
for name, answers in seen.items():
    print(f"{name:9} {answers}")
expected = {
    "decoded": [1, "two", 8, None],
    "arrow": ["1", '"two"', "8", "null"],
    "undecoded": ["1", '"two"', "8", "null"],
}
sys.exit(0 if seen == expected else 1)
END
