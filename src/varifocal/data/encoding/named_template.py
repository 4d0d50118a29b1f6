"""Chat templates by name: the prompts of the papers' code, as Jinja in `chat_templates`.

Each file is written from its format's description. What a template cannot see is set in front of
it: the model's image placeholder, and where its tokenizer needs a blank so that a text after a
special token is read as a text that stands alone (see `_gap`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from varifocal.data.encoding.chat_template import ChatTemplate
from varifocal.errors import ChatTemplateError
from varifocal.recipe.chat_templates import CHAT_TEMPLATES, SETS_IMAGE_TOKEN

FOLDER = Path(__file__).parent / "chat_templates"

SCORING_TEMPLATES = ("user_assistant", "vicuna_v1_image_first", "vicuna_v1_untrimmed")
"""Names that only benchmarks take: MLAN's code asks in prompts that nothing was trained on."""

_FILES = {"lavin_chat": "lavin", "vicuna_v1_untrimmed": "vicuna_v1_image_first"}
_OPENINGS = {"lavin_chat": "Instruction: "}
_NEEDED_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>")}
_PROBE = "Question"


def choose_template(
    choice: str, tokenizer: PreTrainedTokenizerBase, image_token: str | None = None
) -> str:
    """Return the Jinja text of a recipe's `data.chat_template`.

    Args:
        choice: a name, one of `SCORING_TEMPLATES` too, or a template's own text. The variable
            `image_token` is the model's placeholder there.
        tokenizer: of the model that reads the prompts.
        image_token: the model's placeholder of an image; None for a model that takes none.

    Raises:
        ChatTemplateError: the tokenizer lacks a token that the template ends answers with.
    """
    placeholder = f"{SETS_IMAGE_TOKEN}{json.dumps(image_token or '')} -%}}"
    if choice not in (*CHAT_TEMPLATES, *SCORING_TEMPLATES):
        reads = "image_token" in choice or ChatTemplate(tokenizer, image_token, choice).takes_parts
        return placeholder + choice if reads else choice
    _check_tokens(choice, tokenizer)
    starts = list(tokenizer("a").input_ids[:1]) == [tokenizer.bos_token_id]
    variables = {
        "gap": json.dumps(_gap(tokenizer)),
        "bos": "bos_token" if starts else '""',
        "start": "bos_token + gap" if starts else '""',
        "opening": json.dumps(_OPENINGS.get(choice, "")),
        "is_image_first": json.dumps(choice == "vicuna_v1_image_first"),
    }
    settings = [f"{{%- set {name} = {value} -%}}" for name, value in variables.items()]
    files = [_read("_content"), _read(_FILES.get(choice, choice))]
    return "".join([placeholder, *settings, *files])


def _read(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def _check_tokens(choice: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token is None:
        raise ChatTemplateError(
            f"data.chat_template: {choice} ends answers with an end-of-sequence token, and the "
            "tokenizer has none; take another template"
        )
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _NEEDED_TOKENS.get(choice, ()) if token not in vocabulary]
    if missing:
        raise ChatTemplateError(
            f"data.chat_template: {choice} writes {' and '.join(missing)}, which the tokenizer "
            "does not have as tokens; take another template, such as vicuna_v1"
        )


def _gap(tokenizer: Any) -> str:
    """Return what makes a text after a special token the ids that it has alone.

    The papers' code tokenises what stands before and after an image apart. SentencePiece sets a
    blank in front of a text; in front of one that follows a special token, some tokenizers of
    transformers do (`legacy`), others do not.
    """
    wall = tokenizer.eos_token
    alone = tokenizer(_PROBE, add_special_tokens=False).input_ids
    fits = [
        gap
        for gap in ("", " ")
        if tokenizer(wall + gap + _PROBE, add_special_tokens=False).input_ids[1:] == alone
    ]
    return fits[0] if fits else ""
