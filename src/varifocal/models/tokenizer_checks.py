"""Whether a tokenizer reads text, writes a turn, and stays within a model's vocabulary."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from varifocal.errors import ModelError
from varifocal.models.names import locate

_PROBE = "a 1"


def check_tokenizer(
    name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, template: Any = None
) -> None:
    """Refuse a tokenizer that a language model cannot be used with.

    Args:
        name: what error texts call the checkpoint.
        tokenizer: as loaded from it.
        config: the language model's, or the vision-language model's.
        template: a processor's chat template; by default the tokenizer's own.

    Raises:
        ModelError: it reads nothing, its ids lie past the vocabulary, or its chat template is
            empty or broken.
    """
    _check_reads(name, tokenizer)
    _check_vocabulary(name, tokenizer, config)
    jinja = template or tokenizer.chat_template
    if isinstance(jinja, str) and not jinja.strip():
        raise ModelError(
            f"{name!r}: its chat template ({_place(name)}) is empty; copy it again, or delete it "
            "if the model has none"
        )
    if jinja:
        _check_template(name, tokenizer, template)


def _check_reads(name: str, tokenizer: Any) -> None:
    """Refuse the empty tokenizer that transformers makes where the vocabulary's file is missing."""
    try:
        ids = set(tokenizer(_PROBE, add_special_tokens=False).input_ids)
    except Exception as error:  # of whatever kind: the settings are the file's
        raise ModelError(
            f"{name!r}: its tokenizer reads no text: {' '.join(str(error).split())}; restore its "
            "tokenizer_config.json"
        ) from error
    if not ids - {tokenizer.unk_token_id}:
        files = sorted(set(type(tokenizer).vocab_files_names.values()) | {"tokenizer.json"})
        raise ModelError(
            f"{name!r}: its tokenizer reads no text at all, it has {len(tokenizer)} tokens; a file "
            f"of its vocabulary is missing or empty ({', '.join(files)}): copy it from the model "
            "that the tokenizer belongs to"
        )


def _check_vocabulary(name: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Refuse words that the model has no embedding for.

    A token that was added and is never written may lie past the vocabulary (Gemma 3 1B's image
    token does), and so may a padding token, for which another is taken.
    """
    words = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(words, int):
        return
    ends = {
        tokenizer.convert_ids_to_tokens(number): number
        for number in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        if number is not None
    }
    largest = max(
        (n for n in tokenizer.get_vocab().values() if n < tokenizer.vocab_size), default=0
    )
    token = tokenizer.convert_ids_to_tokens(largest)
    past = {**({token: largest} if isinstance(token, str) else {}), **ends}
    for token, number in past.items():
        if number >= words:
            raise ModelError(
                f"{name!r}: its tokenizer gives {token!r} the id {number}, and config.json says "
                f"vocab_size {words} (ids 0 to {words - 1}); take tokenizer and model from one "
                "checkpoint"
            )


def _check_template(name: str, tokenizer: Any, template: Any) -> None:
    """Refuse a chat template that cannot write one user turn, neither as a text nor as parts."""
    try:
        jinja = template or tokenizer.get_chat_template()
        try:
            _write_turn(tokenizer, jinja, _PROBE)
        except Exception:
            _write_turn(tokenizer, jinja, [{"type": "text", "text": _PROBE}])
    except Exception as error:  # a template may raise anything
        first = error.__context__ or error
        raise ModelError(
            f"{name!r}: its chat template ({_place(name)}) cannot write a single user turn: "
            f"{type(first).__name__}: {' '.join(str(first).split())}; fix the template"
        ) from error


def _write_turn(tokenizer: Any, jinja: Any, content: Any) -> None:
    turn = {"role": "user", "content": content}
    tokenizer.apply_chat_template(
        [turn], chat_template=jinja, tokenize=False, add_generation_prompt=True
    )


def _place(name: str) -> str:
    """Return where a checkpoint's chat template is."""
    folder = Path(locate(name))
    files = ("chat_template.jinja", "chat_template.json")
    found = [str(folder / each) for each in files if (folder / each).is_file()]
    return found[0] if found else "chat_template in tokenizer_config.json"
