#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer.from_pretrained of a folder that has tokenizer_config.json, but no
# vocabulary (a download that broke off, a checkpoint copied without tokenizer.json), gives a tokenizer
# that encodes every text to nothing: no error, no warning, no line in the log. A training on it sees
# empty prompts. With tokenizer_class PreTrainedTokenizerFast the same folder is refused.
#
# Seen:
#   LlamaTokenizer: LlamaTokenizer of 3 tokens, "Hello world" -> [], 0 warnings, 0 lines in the log
#   Qwen2Tokenizer: Qwen2Tokenizer of 2 tokens, "Hello world" -> [], 0 warnings, 0 lines in the log
#   GPT2Tokenizer: GPT2Tokenizer of 2 tokens, "Hello world" -> [], 0 warnings, 0 lines in the log
#   PreTrainedTokenizerFast: ValueError
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" TRANSFORMERS_NO_ADVISORY_WARNINGS=1
venv/bin/python - <<'END'
import json
import logging
import sys
import warnings
from pathlib import Path

from transformers import AutoTokenizer

lines: list[logging.LogRecord] = []
handler = logging.Handler()
handler.emit = lines.append
logging.getLogger("transformers").addHandler(handler)

as_seen = True
for name in ("LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"):
    folder = Path(name)
    folder.mkdir()
    config = {"tokenizer_class": name, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    lines.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except ValueError:
            print(f"{name}: ValueError")
            as_seen &= name == "PreTrainedTokenizerFast"
            continue
        ids = tokenizer("Hello world").input_ids
    print(
        f'{name}: {type(tokenizer).__name__} of {len(tokenizer)} tokens, "Hello world" -> {ids}, '
        f"{len(caught)} warnings, {len(lines)} lines in the log"
    )
    as_seen &= not (ids or caught or lines)
sys.exit(not as_seen)
END
