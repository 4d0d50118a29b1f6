"""Run the encoder on official chat templates, which this repository does not hold.

    python benchmarks/official_templates.py FOLDER

FOLDER holds templates as `NAME.jinja`, for example those of TRL's `trl/chat_templates`. Of each the
prompt's end is printed, and what is trained of one answer, of an answer with a thought, of two
answers, and with a system message. The exit code is 1 if an answer without a thought is not trained
after the prompt that asks for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from varifocal.data.encoding.encoded import Encoded
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.errors import VarifocalError

_SPECIAL = re.compile(
    r"<[|\uff5c][^<>\s]+[|\uff5c]>|<\|?(?:turn|channel)\|?>|<(?:start|end)_of_turn>"
)
_THOUGHT = "<think>\nhm\n</think>\n\ntwo"
TALKS = {
    "one answer": ("one?", "two"),
    "a thought": ("one?", _THOUGHT),
    "two answers": ("one?", "two", "three?", "four"),
}


def main() -> int:
    """Print what becomes of each template."""
    failed = 0
    for file in sorted(Path(sys.argv[1]).glob("*.jinja")):
        print(file.stem)
        lines = list(_report(file.read_text()))
        failed += any(line.startswith("FAILS") for line in lines)
        print(*(f"  {line}" for line in lines), sep="\n")
    print(f"{failed} of them fail")
    return int(failed > 0)


def _report(jinja: str) -> Iterator[str]:
    try:
        encoder = Encoder(_tokenizer(jinja))
    except VarifocalError as error:
        yield f"FAILS: {error}"
        return
    asked = encoder.encode(_talk("one?"), with_answer=False).input_ids.tolist()
    yield f"prompt: ...{encoder.tokenizer.decode(asked)[-50:]!r}"
    for name, texts in TALKS.items():
        try:
            encoded = encoder.encode(_talk(*texts))
        except VarifocalError as error:
            yield f"{'' if _THOUGHT in texts else 'FAILS '}{name}: {error}"
            continue
        yield f"{name}: {_trained(encoder, encoded)}, {encoded.rewritten_answers} rewritten"
        if name == "one answer" and encoded.input_ids[: len(asked)].tolist() != asked:
            yield "FAILS: it is not trained behind that prompt"
    try:
        lost = encoder.encode(_talk("one?", "two", system="Be brief.")).lost_system
        yield f"system message: {'left out' if lost else 'read'}"
    except VarifocalError as error:
        yield f"system message: {error}"


def _tokenizer(jinja: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes that knows a template's special tokens."""
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **ends)
    found = sorted(set(_SPECIAL.findall(jinja)))
    for token in found:
        tokenizer.add_tokens(AddedToken(token, special=True, normalized=False), special_tokens=True)
    tokenizer.chat_template = jinja
    return tokenizer


def _talk(*texts: str, system: str = "") -> Example:
    messages = [Message("system", (system,))] if system else []
    for number, text in enumerate(texts):
        messages.append(Message("assistant" if number % 2 else "user", (text,)))
    return Example(tuple(messages), id="7")


def _trained(encoder: Encoder, encoded: Encoded) -> list[str]:
    """Return the text of each trained stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], encoded.prompt_mask, [True]])))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [str(encoder.tokenizer.decode(encoded.input_ids[a:b])) for a, b in pairs]


if __name__ == "__main__":
    sys.exit(main())
