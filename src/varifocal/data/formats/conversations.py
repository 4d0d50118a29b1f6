"""Conversations as LLaVA, ShareGPT and OpenAI write them, and what is the same in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from varifocal.data.example import Example, Image, Message, Role
from varifocal.data.formats.base import ParseOptions, id_of, short, task_of
from varifocal.data.formats.questions import PLACEHOLDER
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import image_cells, locate_image
from varifocal.errors import AnswerError, DataError, PlaceholderError, nearest

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
    filled = {key: value for key, value in turn.items() if value not in (None, "", [], {})}
    for key in _TOOL_KEYS:
        if key in filled:
            raise DataError(f"{where} has '{key}'; turns that call tools cannot be read")
    for key in _MEDIA_KEYS:
        if key in filled:
            raise DataError(
                f"{where} has '{key}'; images stand next to the turns ('images' of the record, "
                "with <image> in the text) or among the content's parts"
            )
    for key in _PARTIAL_KEYS:
        if key in filled:
            raise DataError(
                f"{where} has '{key}'; an answer is trained as a whole or not at all "
                "('weight': 1 or 0)"
            )
    known = {*SPEAKER_KEYS, *WORD_KEYS, *THOUGHT_KEYS, *MARK_KEYS, *_HARMLESS}
    return TurnNotes(
        _is_trained(filled, role, where),
        _thought(filled, role, where),
        tuple(key for key in filled if key not in known),
    )


def _is_trained(filled: Mapping[str, Any], role: Role, where: str) -> bool:
    marks = {key: filled[key] for key in MARK_KEYS if key in filled}
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


def _thought(filled: Mapping[str, Any], role: Role, where: str) -> str:
    given = {key: filled[key] for key in THOUGHT_KEYS if key in filled}
    for key, value in given.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: '{key}' must be a text, not {short(value)}")
        if role != "assistant":
            raise DataError(f"{where} has '{key}'; only an assistant's turn has a thought")
    if len(set(given.values())) > 1:
        raise DataError(f"{where}: {', '.join(given)} are different thoughts of one turn")
    return next(iter(given.values()), "")


_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
}
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_TOOLS = ("tools", "functions")


class Said(NamedTuple):
    """One turn as a record has it.

    Attributes:
        speaker: "human", "assistant" ...
        content: a text, or a list of OpenAI's parts.
        notes: its other keys.
    """

    speaker: str
    content: object
    notes: TurnNotes = TurnNotes()


def parse_conversation(record: Record, asked: ParseOptions) -> Example:
    """Make an example of `conversations` or `messages`.

    A turn names its speaker in `from` (human, gpt) or `role` (user, assistant), and says in `value`
    or `content` a text or a list of OpenAI's parts. `<image>` in a text is the next of the row's
    images, "image" or "images".

    Raises:
        DataError: the turns cannot be read, or their placeholders and the images disagree.
    """
    row, where = record.row, record.where
    turns = _turns_of(row, where)
    parsed = [_read_turn(turn, f"{where}: turn {n}") for n, turn in enumerate(turns, start=1)]
    system = row.get("system")
    if system and parsed and parsed[0].speaker != "system":
        parsed.insert(0, Said("system", system))
    return conversation(parsed, record, asked)


def conversation(
    spoken: Sequence[tuple[str, object] | Said], record: Record, asked: ParseOptions
) -> Example:
    """Make an example of speakers and what they say; see `parse_conversation`."""
    where = record.where
    for key in _OTHER_MEDIA:
        if record.row.get(key):
            raise DataError(f"{where} has '{key}'; only text and images can be read")
    for key in _TOOLS:
        if record.row.get(key) not in (None, "", "[]", [], {}):
            raise DataError(f"{where} has '{key}'; conversations with tools cannot be read")
    images = _images_of(record.row, asked, where)
    waiting = iter(images)
    messages: list[Message] = []
    placeholders = 0
    unread: list[str] = []
    turns = (turn if isinstance(turn, Said) else Said(turn[0], turn[1]) for turn in spoken)
    for speaker, content, notes in turns:
        parts = _parts_of(content, asked, where)
        placeholders += sum(part is None for part in parts)
        filled = (next(waiting, None) if part is None else part for part in parts)
        message = Message(
            _role(speaker, where),
            tuple(part for part in filled if part),
            notes.thought,
            notes.is_trained,
        )
        unread += notes.unread
        if message.role == "assistant" and not message.text.strip():
            raise AnswerError(f"{where}: the answer in turn {len(messages) + 1} is empty")
        messages.append(message)
    if placeholders != len(images):
        raise PlaceholderError(
            f"{where}: the text has {placeholders} placeholders {PLACEHOLDER}, "
            f"but {len(images)} images are given"
        )
    return Example(
        tuple(messages),
        id=id_of(record),
        source=record.source,
        task=task_of(record, asked),
        unread_keys=tuple(dict.fromkeys(unread)),
    )


def _turns_of(row: Mapping[str, Any], where: str) -> list[Any]:
    for key in ("conversations", "messages", "conversation"):
        if (turns := row.get(key)) is not None:
            if isinstance(turns, dict):  # older data sets of the hub keep columns of turns
                turns = _rows_of(turns, f"{where}: '{key}'")
            if not isinstance(turns, list) or not turns:
                raise DataError(f"{where}: '{key}' must be a list of turns, not {short(turns)}")
            return turns
    raise DataError(f"{where} has neither 'conversations' nor 'messages' but {', '.join(row)}")


def _rows_of(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Turn {"from": [...], "value": [...]} into a list of turns."""
    lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise DataError(f"{where} must be a list of turns, not {short(columns)}")
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _read_turn(turn: Any, where: str) -> Said:
    """Read a turn's speaker, what is said, and its other keys."""
    if not isinstance(turn, dict):
        raise DataError(f"{where} is {short(turn)}, no object")
    speaker = turn.get("from") if turn.get("from") is not None else turn.get("role")
    if not isinstance(speaker, str):
        raise DataError(f"{where}: its speaker ('from' or 'role') is {short(speaker)}")
    words = [turn[key] for key in WORD_KEYS if turn.get(key) is not None]
    if len(words) > 1 and words[0] != words[1]:
        raise DataError(f"{where} has both 'value' and 'content', and they differ")
    notes = read_notes(turn, _role(speaker, where), where)
    return Said(speaker, words[0] if words else None, notes)


def _role(speaker: str, where: str) -> Role:
    role = _ROLES.get(speaker.strip().lower())
    if role is None:
        raise DataError(
            f"{where}: speaker '{speaker[:40]}' is none of {', '.join(_ROLES)}"
            f"{nearest(speaker, _ROLES)}"
        )
    return role


def _images_of(row: Mapping[str, Any], asked: ParseOptions, where: str) -> list[Image]:
    """Find the images that a row gives next to its turns."""
    return [locate_image(cell, asked.image_folder, where) for cell in image_cells(row, where)]


def _parts_of(content: object, asked: ParseOptions, where: str) -> list[str | Image | None]:
    """Return what is said as texts and images, None where an image of the row belongs."""
    if isinstance(content, str):
        return list(_split(content))
    if not isinstance(content, list):
        raise DataError(f"{where}: a turn says {short(content)}, a text or a list is needed")
    parts: list[str | Image | None] = []
    for part in content:
        parts += _part(part, asked, where)
    return parts


def _split(text: str) -> Iterator[str | None]:
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        if number:
            yield None
        if piece:
            yield piece


def _part(part: Any, asked: ParseOptions, where: str) -> list[str | Image | None]:
    """Read one of OpenAI's parts: text, image_url, or image as transformers' templates have it."""
    if isinstance(part, str):
        return list(_split(part))
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return list(_split(part["text"]))
    if kind == "image_url":
        value = part.get("image_url")
        value = value.get("url") if isinstance(value, dict) else value
        return [locate_image(value, asked.image_folder, where)]
    if kind == "image":
        keys = ("image", "path", "url")
        value = next((part[key] for key in keys if part.get(key) is not None), None)
        return [None if value is None else locate_image(value, asked.image_folder, where)]
    raise DataError(
        f"{where}: {short(part)} is no part that can be read: type text, image_url or image"
    )


def is_vision_flan(record: Record) -> bool:
    """Tell whether a row is one of Vision-Flan's: LLaVA's, and `task_name`."""
    return _speaks(record, "conversations", "from") and "task_name" in record.row


def is_llava(record: Record) -> bool:
    """Tell whether a row is one of LLaVA's: `conversations`, and an image or its placeholder."""
    turns = record.row.get("conversations")
    return _speaks(record, "conversations", "from") and (
        "image" in record.row or PLACEHOLDER in str(turns)
    )


def is_sharegpt(record: Record) -> bool:
    """Tell whether a row's turns have `from` and `value`."""
    return any(_speaks(record, key, "from") for key in ("conversations", "messages"))


def is_openai(record: Record) -> bool:
    """Tell whether a row's turns have `role` and `content`."""
    return any(_speaks(record, key, "role") for key in ("messages", "conversations"))


def _speaks(record: Record, key: str, speaker: str) -> bool:
    turns = record.row.get(key)
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and first.get(speaker) is not None


def parse_vision_flan(record: Record, asked: ParseOptions) -> Example:
    """Make an example of {"id", "image", "task_name", "conversations"}.

    Raises:
        DataError: as `parse_conversation`, or the task's name is missing.
    """
    if not record.row.get("task_name"):
        raise DataError(f"{record.where} has no 'task_name'; a format without is llava")
    return parse_conversation(record, asked)
