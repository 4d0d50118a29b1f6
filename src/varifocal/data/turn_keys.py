"""What a record's turn says besides its speaker and its words: marks, thoughts, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varifocal.data.example import Role
from varifocal.data.parsing import short
from varifocal.errors import DataError

SPEAKER_KEYS = ("from", "role")
WORD_KEYS = ("value", "content")
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
"""What an assistant thinks before it answers: vLLM's and DeepSeek's name, gpt-oss's, others'."""

MARK_KEYS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight")
"""Whether an answer is trained: OpenAI's, axolotl's, ms-swift's and others' names."""

_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_PARTIAL_KEYS = ("train_detail", "training_detail", "mask", "token_mask")
_MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios")
_HARMLESS = frozenset(
    [
        *("name", "model", "author", "source", "user", "user_id", "lang", "language", "markdown"),
        *("id", "uid", "uuid", "message_id", "parent", "parent_id", "conversation_id"),
        *("index", "idx", "turn", "turn_id", "turn_index", "token_count", "num_tokens"),
        *(
            "timestamp",
            "time",
            "date",
            "created_at",
            "create_time",
            "updated_at",
            "metadata",
            "meta",
        ),
    ]
)


@dataclass(frozen=True)
class TurnNotes:
    """What a turn says besides speaker and words.

    Attributes:
        is_trained: False for an answer marked not to be learnt.
        thought: an assistant's, before its answer.
        unread: keys that nothing is made of.
    """

    is_trained: bool = True
    thought: str = ""
    unread: tuple[str, ...] = ()


def read_notes(turn: Mapping[str, Any], role: Role, where: str) -> TurnNotes:
    """Read the keys of a turn that are neither its speaker nor its words.

    A key whose value is null or empty says nothing: files whose turns must all have the same keys
    fill them so.

    Args:
        turn: as the record has it.
        role: its speaker's.
        where: file, record and turn, for error texts.

    Raises:
        DataError: a key changes what the turn means in a way that cannot be followed.
    """
    said = {key: value for key, value in turn.items() if value not in (None, "", [], {})}
    for key in _TOOL_KEYS:
        if key in said:
            raise DataError(f"{where} has '{key}'; turns that call tools cannot be read")
    for key in _MEDIA_KEYS:
        if key in said:
            raise DataError(
                f"{where} has '{key}'; pictures stand beside the turns ('images' of the record, "
                "with <image> in the text) or among the content's parts"
            )
    for key in _PARTIAL_KEYS:
        if key in said:
            raise DataError(
                f"{where} has '{key}'; an answer is trained as a whole or not at all "
                "('weight': 1 or 0)"
            )
    known = {*SPEAKER_KEYS, *WORD_KEYS, *THOUGHT_KEYS, *MARK_KEYS, *_HARMLESS}
    return TurnNotes(
        _is_trained(said, role, where),
        _thought(said, role, where),
        tuple(key for key in said if key not in known),
    )


def _is_trained(said: Mapping[str, Any], role: Role, where: str) -> bool:
    marks = {key: said[key] for key in MARK_KEYS if key in said}
    for key, value in marks.items():
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise DataError(
                f"{where}: '{key}' is {short(value)}; an answer is trained (1, true) or not "
                "(0, false), nothing between"
            )
        if role != "assistant" and value:
            raise DataError(
                f"{where}: '{key}' is {short(value)} in a turn of the {role}; only the "
                "assistant's answers are trained"
            )
    if len({bool(value) for value in marks.values()}) > 1:
        raise DataError(f"{where}: {', '.join(marks)} contradict each other")
    return all(marks.values())


def _thought(said: Mapping[str, Any], role: Role, where: str) -> str:
    given = {key: said[key] for key in THOUGHT_KEYS if key in said}
    for key, value in given.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: '{key}' must be a text, not {short(value)}")
        if role != "assistant":
            raise DataError(f"{where} has '{key}'; only an assistant's turn has a thought")
    if len(set(given.values())) > 1:
        raise DataError(f"{where}: {', '.join(given)} are different thoughts of one turn")
    return next(iter(given.values()), "")
