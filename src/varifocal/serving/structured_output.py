"""Answers that follow a JSON schema: which tokens may come next, by llguidance's parser.

The parser of an answer is a state of its own, so rows of a batch that follow different schemas, or
none, do not know of each other. JSON is written in the form of `json.dumps`: `", "` between values,
`": "` after a key, no other blanks, so that a model cannot write blanks without end.

Letters: V vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varifocal.errors import DataError

ANY_OBJECT = '{"type": "object"}'
"""The schema of `response_format: {type: json_object}`."""

MAX_SCHEMA_CHARS = 65_536
MAX_SCHEMA_DEPTH = 64
_FORM = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # a schema's own `x-guidance` could else have its keywords ignored
    "lenient": False,
    "coerce_one_of": False,
}
_PARSER_LIMITS = {  # of llguidance: a second for a schema, some milliseconds for a token
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class SchemaError(DataError):
    """A JSON schema that no answer can follow here."""


class AnswerParser:
    """Follows one answer and says which tokens may come next.

    Args:
        matcher: llguidance's, at the beginning of the answer.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed_bits(self) -> npt.NDArray[np.uint8]:
        """Return which tokens may come next, eight to a byte, the lowest id in the lowest bit."""
        return np.frombuffer(self._matcher.compute_bitmask(), np.uint8)

    def push(self, token: int) -> bool:
        """Take the token that was chosen, and return whether the answer is complete with it.

        Raises:
            SchemaError: the schema has become too complex to follow.
        """
        if not self._matcher.consume_token(token):
            reason = " ".join(self._matcher.get_error().split())
            raise SchemaError(f"the answer cannot follow its schema further: {reason[:300]}")
        return self._matcher.is_stopped()


def forbid_tokens(logits: Tensor, parsers: Sequence[AnswerParser | None]) -> None:
    """Set the logits of tokens that may not come next to minus infinity, in place.

    Args:
        logits: [B, V].
        parsers: [B]; None for a row in which any token may come.
    """
    rows = [row for row, parser in enumerate(parsers) if parser is not None]
    bits = np.stack([parser.allowed_bits() for parser in parsers if parser is not None])
    allowed = np.unpackbits(bits, axis=1, count=logits.shape[1], bitorder="little")
    forbidden = torch.from_numpy(allowed == 0).to(logits.device)
    logits[rows] = logits[rows].masked_fill(forbidden, -torch.inf)


class SchemaCompiler:
    """Compiles JSON schemas for a tokenizer; any thread may call it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stop_ids: ids at which an answer ends.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, sorted(stop_ids)
        self._vocabulary: Any = None
        self._reading = threading.Lock()

    def compile(self, schema: str) -> AnswerParser:
        """Compile a schema; takes up to a second, most of it without Python's lock.

        Args:
            schema: a JSON object as text.

        Raises:
            SchemaError: it is too large or too deep, is no schema, or has what cannot be enforced.
        """
        _check_size(schema)
        library = _library()
        vocabulary = self._read_vocabulary()
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)
        except ValueError as error:
            raise SchemaError(f"this is no JSON schema: {error}") from error
        limits = library.LLParserLimits(**_PARSER_LIMITS)
        matcher = library.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise SchemaError(f"no answer can be held to this schema: {reason[:300]}")
        return AnswerParser(matcher)

    def _read_vocabulary(self) -> Any:
        """Read the tokenizer's vocabulary once, when the first schema comes."""
        with self._reading:
            if self._vocabulary is None:
                from llguidance.hf import from_tokenizer

                try:
                    self._vocabulary = from_tokenizer(self._tokenizer, eos_token=self._stop_ids)
                except Exception as error:  # whatever its Rust code does not know
                    raise SchemaError(
                        f"llguidance cannot read this model's tokenizer ({error}); ask without a "
                        "schema"
                    ) from error
            return self._vocabulary


def _check_size(schema: str) -> None:
    if len(schema) > MAX_SCHEMA_CHARS:
        raise SchemaError(
            f"a schema may have {MAX_SCHEMA_CHARS:,} characters, not {len(schema):,}; send less"
        )
    depth = _depth(json.loads(schema))
    if depth > MAX_SCHEMA_DEPTH:
        raise SchemaError(
            f"a schema may be {MAX_SCHEMA_DEPTH} objects and lists deep, not {depth}; use $defs"
        )


def _depth(value: Any) -> int:
    """Count how many objects and lists are inside one another.

    >>> _depth({"type": "array", "items": {"enum": [1]}})
    3
    """
    deepest, todo = 0, [(value, 1)]
    while todo:
        part, depth = todo.pop()
        if isinstance(part, dict | list):
            deepest = max(deepest, depth)
            parts = part.values() if isinstance(part, dict) else part
            todo += [(each, depth + 1) for each in parts]
    return deepest


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise SchemaError(
            "answers that follow a schema need llguidance; install it with: pip install llguidance"
        ) from error
    return llguidance
