"""ScienceQA's official layout: `problems.json`, `pid_splits.json`, `images/SPLIT/ID/image.png`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from varifocal.data.example import Example, Image, Message
from varifocal.data.questions import (
    CAPTION_PROMPT,
    LETTERS,
    AnswerAs,
    option_texts,
    question_text,
    user_turn,
)
from varifocal.data.reading import (
    Examples,
    OnBadRecord,
    gather,
    read_json_object,
    resolve_image,
)
from varifocal.errors import DataError, nearest

PromptFormat = Literal["QCM-A", "QCM-ALE", "caption"]

_TAGS = ("subject", "grade", "topic", "category", "skill", "task", "split")


@dataclass(frozen=True)
class _Problem:
    """One checked record."""

    id: str
    where: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    lecture: str
    solution: str
    caption: str
    image: Image | None
    tags: Mapping[str, str]


def load_scienceqa(
    directory: str | Path,
    split: str | None = None,
    *,
    prompt_format: PromptFormat = "QCM-A",
    answer_as: AnswerAs = "text",
    skills: Iterable[str] | None = None,
    max_examples: int | None = None,
    on_bad_record: OnBadRecord = "fail",
) -> Examples:
    """Load questions in ScienceQA's layout (Lu et al. 2022; facts of LaVIN's protocol).

    Args:
        directory: holds `problems.json` and `pid_splits.json`; pictures lie in
            `images/SPLIT/ID/`; captions stand in the records or in `captions.json`.
        split: a name of `pid_splits.json`; None takes every record that is in a split, once.
        prompt_format: "QCM-A" (question, context and choices; answer), "QCM-ALE" (answer, then
            "BECAUSE:" with lecture and explanation), or "caption" (describe the picture; records
            without a caption or a picture are left out).
        answer_as: answer with the choice's text, or with "The answer is B.".
        skills: take only these; None takes all.
        max_examples: take at most so many, the first ones.
        on_bad_record: "fail" raises at the first broken record, "skip" notes it in `skipped`.

    Returns:
        One example a record. `tags` holds the record's subject, grade, topic, category, skill,
        task and split, and `hint`: "yes" where there is a text context, else "no".

    Raises:
        DataError: a file is missing or malformed, the split is unknown or empty, a skill is
            unknown, or a record is broken; the text names file and record.
    """
    if prompt_format not in get_args(PromptFormat):
        allowed = get_args(PromptFormat)
        hint = nearest(prompt_format, allowed)
        raise DataError(f"prompt format '{prompt_format}' is none of {', '.join(allowed)}{hint}")
    root = Path(directory)
    problems = read_json_object(root / "problems.json")
    chosen = _choose(root, split, problems)
    wanted = _check_skills(root, skills, problems)
    parse = partial(
        _parse,
        root=root,
        problems=problems,
        captions=_read_captions(root),
        skills=wanted,
        prompt_format=prompt_format,
        answer_as=answer_as,
    )
    examples = gather(chosen, parse, on_bad_record, max_examples)
    if not examples and not examples.skipped:
        what = " with picture and caption" if prompt_format == "caption" else ""
        raise DataError(f"'{root}' has no record{what} in {_split_name(split)}")
    return examples


def _split_name(split: str | None) -> str:
    return "any split" if split is None else f"split '{split}'"


def _choose(root: Path, split: str | None, problems: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the (split, id) pairs to load."""
    path = root / "pid_splits.json"
    splits = read_json_object(path)
    names = list(splits) if split is None else [split]
    chosen: list[tuple[str, str]] = []
    for name in names:
        if name not in splits:
            hint = nearest(name, splits)
            raise DataError(f"'{path}' has no split '{name}' but {', '.join(splits)}{hint}")
        ids = splits[name]
        if not isinstance(ids, list):
            raise DataError(f"'{path}': split '{name}' is no list of ids")
        chosen += [(name, str(pid)) for pid in ids]
    if split is None:  # the official file also has unions and parts of splits: trainval, minival
        first = {pid: (name, pid) for name, pid in reversed(chosen)}
        chosen = [first[pid] for pid in dict.fromkeys(pid for _, pid in chosen)]
    if not chosen:
        raise DataError(f"'{path}': {_split_name(split)} is empty")
    if not any(pid in problems for _, pid in chosen):
        raise DataError(
            f"'{path}': none of the {len(chosen)} ids of {_split_name(split)} is in problems.json"
        )
    return chosen


def _check_skills(
    root: Path, skills: Iterable[str] | None, problems: Mapping[str, Any]
) -> frozenset[str] | None:
    if skills is None:
        return None
    present = {str(r["skill"]) for r in problems.values() if isinstance(r, dict) and "skill" in r}
    wanted = frozenset(skills)
    for skill in sorted(wanted - present):
        raise DataError(f"'{root}' has no skill '{skill}'{nearest(skill, present)}")
    return wanted


def _read_captions(root: Path) -> Mapping[str, Any]:
    """Read the official `captions.json` ({"captions": {id: text}}) where there is one."""
    path = root / "captions.json"
    if not path.exists():
        return {}
    captions = read_json_object(path).get("captions")
    if not isinstance(captions, dict):
        raise DataError(f"'{path}' has no object 'captions'")
    return captions


def _parse(
    chosen: tuple[str, str],
    *,
    root: Path,
    problems: Mapping[str, Any],
    captions: Mapping[str, Any],
    skills: frozenset[str] | None,
    prompt_format: PromptFormat,
    answer_as: AnswerAs,
) -> Example | None:
    split, pid = chosen
    where = f"{root / 'problems.json'}: record '{pid}'"
    record = problems.get(pid)
    if not isinstance(record, dict):
        what = "is missing, but pid_splits.json lists it" if record is None else "is no object"
        raise DataError(f"{where} {what} (split '{split}')")
    if skills is not None and record.get("skill") not in skills:
        return None
    record = {"split": split, "caption": captions.get(pid), **record}
    problem = _check(record, pid, where, root / "images")
    if prompt_format == "caption":
        return _describe(problem, root)
    return _ask(problem, root, prompt_format, answer_as)


def _check(record: Mapping[str, Any], pid: str, where: str, images: Path) -> _Problem:
    """Turn a raw record into a checked one."""
    choices = record.get("choices")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(f"{where}: 'choices' must be a list of texts, not {choices!r}")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where}: {len(choices)} choices; 2 to {len(LETTERS)} are allowed")
    answer = record.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        last = len(choices) - 1
        raise DataError(f"{where}: 'answer' is {answer!r}; it must be an index from 0 to {last}")
    question = _text(record, "question", where)
    if not question:
        raise DataError(f"{where}: 'question' is missing or empty")
    hint = _text(record, "hint", where)
    tags = {key: str(record[key]) for key in _TAGS if record.get(key) is not None}
    return _Problem(
        id=pid,
        where=where,
        question=question,
        choices=tuple(choice.strip() for choice in choices),
        answer=answer,
        hint=hint,
        lecture=_text(record, "lecture", where),
        solution=_text(record, "solution", where),
        caption=_text(record, "caption", where),
        image=_find_image(record, pid, where, images) if record.get("image") else None,
        tags={**tags, "hint": "yes" if hint else "no"},
    )


def _find_image(record: Mapping[str, Any], pid: str, where: str, images: Path) -> Image:
    split = _text(record, "split", where)
    for name in (split, pid):
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise DataError(f"{where}: '{name}' cannot be the name of a folder in '{images}'")
    return resolve_image(images / split / pid, record["image"], where)


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: '{key}' must be a text, not {value!r}")
    return (value or "").strip()


def _ask(
    problem: _Problem, root: Path, prompt_format: PromptFormat, answer_as: AnswerAs
) -> Example:
    """Build the multiple-choice conversation."""
    options = option_texts(problem.choices, answer_as)
    reason = " ".join(filter(None, (problem.lecture, problem.solution)))
    answer = options[problem.answer]
    if prompt_format == "QCM-ALE" and reason:
        # A text may hold a full stop, so that only a new line ends it without doubt.
        because = " BECAUSE:" if answer_as == "letter" else "\nBECAUSE:"
        options = tuple(option + because for option in options)
        answer = f"{options[problem.answer]} {reason}"
    prompt = question_text(problem.question, problem.hint, problem.choices)
    return Example(
        messages=(user_turn(prompt, problem.image), Message("assistant", (answer,))),
        id=problem.id,
        source=str(root / "problems.json"),
        task=prompt_format,
        choices=problem.choices,
        answer_index=problem.answer,
        options=options,
        tags=problem.tags,
    )


def _describe(problem: _Problem, root: Path) -> Example | None:
    """Build the conversation that describes the picture, where there is one with a caption."""
    if problem.image is None or not problem.caption:
        return None
    return Example(
        messages=(
            user_turn(CAPTION_PROMPT, problem.image),
            Message("assistant", (problem.caption,)),
        ),
        id=problem.id,
        source=str(root / "problems.json"),
        task="caption",
        tags=problem.tags,
    )
