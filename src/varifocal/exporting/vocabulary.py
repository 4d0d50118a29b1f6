"""A tokenizer as llama.cpp knows it: byte-level BPE, or SentencePiece with bytes to fall back on.

What llama.cpp does with a text is computed with the same tokenizer under llama.cpp's rules (no
normalisation, no flags of added tokens, a blank after every special token or after none). A run
whose chat prompts would be read otherwise is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from varifocal.data.encoding.answer_span import Turn
from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ChatTemplateError, ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# How a tokenizer cuts a text before it merges bytes, and whether a whole word of the vocabulary
# needs no merges; by llama.cpp's names.
_CUTS = {
    (("digits", "words"), False): "smollm",
    (("words",), False): "gpt-2",
    ((_QWEN2, "bytes"), False): "qwen2",
    ((_LLAMA3, "bytes"), True): "llama-bpe",
}
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BLANK = "\u2581"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_FLAGS = ("lstrip", "rstrip", "single_word")
_ASKED: tuple[list[Turn], ...] = (
    [{"role": "user", "content": "What is it?"}],
    [
        {"role": "user", "content": "Name 3 colours."},
        {"role": "assistant", "content": "Red, green, blue."},
        {"role": "user", "content": "And their\nsum?"},
    ],
)
OTHERWISE = (
    "export --to merged, and convert that directory with llama.cpp's own convert_hf_to_gguf.py"
)
_NFC = (
    "llama.cpp does not compose characters (NFC) as the run's tokenizer does: a letter and its "
    "accent, sent as two characters, are read otherwise there; send text in NFC."
)


@dataclass(frozen=True)
class LlamaCppVocabulary:
    """How llama.cpp has to read texts so that a run's chat prompts are what it was trained on.

    Attributes:
        pre: llama.cpp's name for the way in which words are cut; None of a SentencePiece.
        adds_bos: whether a begin of sequence goes in front of every prompt. llama.cpp leaves out
            the one that a chat template writes there, and sets its own.
        adds_blank: whether a blank goes in front of text after a special token (SentencePiece).
        notes: what other texts are read otherwise, a sentence each.
    """

    pre: str | None
    adds_bos: bool
    adds_blank: bool
    notes: tuple[str, ...]


def vocabulary_of(tokenizer: Any, encoder: Encoder) -> LlamaCppVocabulary:
    """Name a tokenizer in llama.cpp's terms.

    Args:
        tokenizer: the language model's.
        encoder: the run's, whose chat prompts decide.

    Raises:
        ModelError: llama.cpp does not know its kind, or would read the chat prompts otherwise.
    """
    page = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    pre = _cut(page) if page else None
    if pre is None and not _is_sentencepiece(page):
        raise ModelError(
            "--to gguf writes byte-level BPE tokenizers that cut words as GPT-2, SmolLM, Qwen2 or "
            f"Llama 3 do, and LLaMA's SentencePiece, and this one is neither: {OTHERWISE}"
        )
    prompts = list(_prompts(encoder))
    own = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    adds_bos = _adds_bos(tokenizer, prompts)
    for adds_blank in (False,) if pre else (True, False):
        reader = Tokenizer.from_str(json.dumps(_as_read(page, adds_blank=adds_blank)))
        if own == [_ids(reader, tokenizer, prompt, adds_bos=adds_bos) for prompt in prompts]:
            return LlamaCppVocabulary(
                pre, adds_bos, adds_blank, tuple(_notes(page, tokenizer, adds_bos))
            )
    flagged = [token["content"] for token in page["added_tokens"] if _flags(token)]
    because = f"it does not know the flags of {', '.join(flagged)}" if flagged else "of its blanks"
    raise ModelError(
        f"llama.cpp would read this run's chat prompts otherwise than it was trained: {because}; "
        "export --to merged, and serve that with vLLM or transformers"
    )


def add_vocabulary(
    writer: GGUFWriter, vocabulary: LlamaCppVocabulary, tokenizer: Any, num_tokens: int
) -> None:
    """Write a tokenizer into a file's header.

    Args:
        writer: of the file.
        vocabulary: as `vocabulary_of` names it.
        tokenizer: the language model's.
        num_tokens: rows of its embedding; those without a token are named as unused.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    sentencepiece = vocabulary.pre is None
    known = {
        number: (token, _BYTE if sentencepiece and token in _BYTES else _NORMAL)
        for token, number in model["vocab"].items()
    }
    for number, added in tokenizer.added_tokens_decoder.items():
        known[number] = (added.content, _CONTROL if added.special else _USER)
    if sentencepiece and tokenizer.unk_token_id is not None:
        known[tokenizer.unk_token_id] = (tokenizer.unk_token, _UNKNOWN)
    tokens = [known.get(n, (f"[PAD{n}]", _UNUSED)) for n in range(num_tokens)]
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_token_list([token for token, _ in tokens])
    if vocabulary.pre is None:
        order = {piece: rank for rank, (piece, _) in enumerate(_by_piece(_merges(model)))}
        writer.add_token_scores([-float(order.get(token, 0)) for token, _ in tokens])
        writer.add_add_space_prefix(vocabulary.adds_blank)
    else:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges([" ".join(pair) for pair in _merges(model)])
    writer.add_token_types([kind for _, kind in tokens])
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds_bos)


def _cut(page: Mapping[str, Any]) -> str | None:
    """Name a byte-level tokenizer's way of cutting words; None where it is of another kind."""
    model = page["model"]
    plain = (page.get("normalizer") or {}).get("type") in (None, "NFC")
    merges = model.get("type") == "BPE" and model["merges"] and not model.get("byte_fallback")
    if not plain or not merges:
        return None
    steps = tuple(_steps(page.get("pre_tokenizer") or {}))
    return _CUTS.get((steps, bool(model.get("ignore_merges"))))


def _steps(page: Mapping[str, Any]) -> Iterator[str]:
    kind = page.get("type")
    if kind == "Sequence":
        for step in page["pretokenizers"]:
            yield from _steps(step)
    elif kind == "Digits" and page["individual_digits"]:
        yield "digits"
    elif kind == "ByteLevel" and not page["add_prefix_space"]:
        yield "words" if page["use_regex"] else "bytes"
    elif kind == "Split" and page["behavior"] == "Isolated" and not page["invert"]:
        yield page["pattern"].get("Regex", "")
    else:
        yield f"unknown {kind}"


def _is_sentencepiece(page: Mapping[str, Any]) -> bool:
    """Whether a tokenizer is SentencePiece's BPE: the best piece first, bytes for the rest.

    llama.cpp merges whatever two pieces make a piece, the one with the highest score first; so the
    merges have to be all such pairs, sorted by the piece that they make.
    """
    model = page.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
        return False
    if not _blanks_are_pieces(page) or not set(_BYTES) <= model["vocab"].keys():
        return False
    groups = list(_by_piece(_merges(model)))
    made = {piece: set(pairs) for piece, pairs in groups}
    added = {token["content"] for token in page["added_tokens"]}
    pieces = {
        piece
        for piece in model["vocab"]
        if piece not in added and piece not in _BYTES and (len(piece) == 1 or piece in made)
    }
    unreached = model["vocab"].keys() - pieces - added - set(_BYTES)
    return len(made) == len(groups) and all(
        made.get(piece, set()) == {pair for pair in _halves(piece) if pieces.issuperset(pair)}
        for piece in (*pieces, *unreached)
        if len(piece) > 1
    )


def _blanks_are_pieces(page: Mapping[str, Any]) -> bool:
    """Whether blanks become U+2581 and nothing else is changed or cut."""
    cuts, changes = page.get("pre_tokenizer"), page.get("normalizer")
    if cuts is not None:
        plain = cuts["type"] == "Metaspace" and cuts["replacement"] == _BLANK and not cuts["split"]
        return plain and changes is None
    steps = (changes or {}).get("normalizers", [changes])
    return all(step in _BLANK_STEPS for step in steps) and _BLANK_STEPS[1] in steps


_BLANK_STEPS: tuple[dict[str, Any], ...] = (
    {"type": "Prepend", "prepend": _BLANK},
    {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in merges]


def _by_piece(merges: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Group neighbouring merges that make the same piece."""
    pairs: list[tuple[str, str]] = []
    for pair in merges:
        if pairs and "".join(pairs[0]) != "".join(pair):
            yield "".join(pairs[0]), pairs
            pairs = []
        pairs.append(pair)
    if pairs:
        yield "".join(pairs[0]), pairs


def _halves(piece: str) -> Iterator[tuple[str, str]]:
    return ((piece[:at], piece[at:]) for at in range(1, len(piece)))


def _as_read(page: Mapping[str, Any], *, adds_blank: bool) -> dict[str, Any]:
    """Return a tokenizer's page under llama.cpp's rules."""
    changed = copy.deepcopy(dict(page))
    if changed["model"].get("byte_fallback"):
        steps = _BLANK_STEPS if adds_blank else _BLANK_STEPS[1:]
        changed["normalizer"] = {"type": "Sequence", "normalizers": list(steps)}
        changed["pre_tokenizer"] = None
    else:
        changed["normalizer"] = None
    for token in changed["added_tokens"]:
        token |= dict.fromkeys((*_FLAGS, "normalized"), False)
    return changed


def _prompts(encoder: Encoder) -> Iterator[str]:
    """Write chat prompts as the run does; those that its template refuses are left out."""
    system: list[Turn] = []
    if encoder.system is not None:
        system = [{"role": "system", "content": encoder.system}]
    for turns in _ASKED:
        try:
            yield encoder.template.render([*system, *turns], add_generation_prompt=True)
        except ChatTemplateError:
            continue


def _adds_bos(tokenizer: Any, prompts: Sequence[str]) -> bool:
    """Whether bare and chat prompts alike start with a begin of sequence."""
    starts = _sets_bos(tokenizer) and bool(prompts)
    return starts and all(prompt.startswith(tokenizer.bos_token) for prompt in prompts)


def _sets_bos(tokenizer: Any) -> bool:
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def _ids(reader: Tokenizer, tokenizer: Any, text: str, *, adds_bos: bool) -> list[int]:
    text = text.removeprefix(tokenizer.bos_token) if adds_bos else text
    ids = reader.encode(text, add_special_tokens=False).ids
    return [tokenizer.bos_token_id, *ids] if adds_bos else ids


def _flags(token: Mapping[str, Any]) -> list[str]:
    return [flag for flag in _FLAGS if token[flag]]


def _notes(page: Mapping[str, Any], tokenizer: Any, adds_bos: bool) -> Iterator[str]:
    if (page.get("normalizer") or {}).get("type") == "NFC":
        yield _NFC
    flagged = [token["content"] for token in page["added_tokens"] if _flags(token)]
    if flagged:
        yield (
            f"llama.cpp does not know the flags ({', '.join(_FLAGS)}) of {', '.join(flagged)}: "
            "blanks around them are read otherwise. Chat prompts hold no such blanks."
        )
    if not adds_bos and _sets_bos(tokenizer):
        yield (
            f"The chat template writes no {tokenizer.bos_token} in front, so the file sets none; "
            "bare prompts, without the template, want it."
        )
