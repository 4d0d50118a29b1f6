"""Whether a run can start on its data, why not, and the fix: in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varifocal.data.encoding.samples import NO_EXAMPLE, NO_IMAGE, NO_SOURCE, text_left_out
from varifocal.data.inspect.counts import SourceCounts
from varifocal.data.inspect.findings import STOPPING, Findings
from varifocal.data.metric import check_scorable
from varifocal.errors import DataError
from varifocal.recipe import DataSection


@dataclass(frozen=True)
class Verdict:
    """The last word on a recipe's data.

    Attributes:
        is_usable: whether a run on it gets through.
        sentence: why, or why not and the fix.
    """

    is_usable: bool
    sentence: str


def judge_data(
    data: DataSection, all_counts: Sequence[SourceCounts], findings: Findings
) -> Verdict:
    """Say whether the training and the scoring would get through all records."""
    if not data.train:
        return Verdict(False, f"not usable: {NO_SOURCE}")
    reasons = (
        _bad_records(data, findings),
        _too_long(data, all_counts),
        _no_room(data, all_counts),
        _too_long_to_score(data, all_counts),
        _no_metric(data, all_counts),
        _nothing_left(all_counts),
    )
    if reason := next(filter(None, reasons), ""):
        return Verdict(False, f"not usable: {reason}")
    return Verdict(True, _usable(data, all_counts, findings))


def _bad_records(data: DataSection, findings: Findings) -> str:
    bad = findings.count(*STOPPING)
    if not bad or data.on_bad_record == "skip":
        return ""
    first = next(finding[0] for kind in STOPPING if (finding := findings.first[kind]))
    return (
        f"{_records(bad)} cannot be used and data.on_bad_record is fail, so the run would stop at "
        f"the first ({first.text}); fix them, or leave them out with data.on_bad_record: skip"
    )


def _too_long(data: DataSection, all_counts: Sequence[SourceCounts]) -> str:
    over = _left_out(all_counts, "train")
    if not over or data.overflow != "error":
        return ""
    longest = max(max(counts.lengths, default=0) for counts in all_counts if counts.side == "train")
    return (
        f"{_records(over)} to train on take more than data.max_length {data.max_length} tokens and "
        f"data.overflow is error; set data.max_length to {longest}, or data.overflow to drop, "
        "truncate_prompt or drop_oldest_turns"
    )


def _no_room(data: DataSection, all_counts: Sequence[SourceCounts]) -> str:
    over = _left_out(all_counts, "train")
    if not over or data.overflow in ("error", "drop") or data.on_bad_record == "skip":
        return ""
    return (
        f"{_records(over)} to train on cannot be cut to data.max_length {data.max_length} without "
        "losing the whole question, and data.on_bad_record is fail; raise data.max_length, or "
        "leave them out with data.on_bad_record: skip"
    )


def _too_long_to_score(data: DataSection, all_counts: Sequence[SourceCounts]) -> str:
    over = _left_out(all_counts, "evaluate")
    if not over or data.on_bad_record == "skip":
        return ""
    longest = max(
        max(counts.lengths, default=0) for counts in all_counts if counts.side == "evaluate"
    )
    fix = "" if data.overflow == "truncate_prompt" else ", or data.overflow to truncate_prompt"
    return (
        f"{_records(over)} to score on take more than data.max_length {data.max_length} tokens, "
        f"and data.on_bad_record is fail; set data.max_length to {longest}{fix}, or leave them out "
        "of the score with data.on_bad_record: skip"
    )


def _no_metric(data: DataSection, all_counts: Sequence[SourceCounts]) -> str:
    """Say which source of questions cannot be scored, and why, as the scoring itself would."""
    scored = [counts for counts in all_counts if counts.side == "evaluate"]
    for section, counts in zip(data.evaluate, scored, strict=True):
        try:
            check_scorable(section, counts.gold)
        except DataError as error:
            return str(error)
    return ""


def _nothing_left(all_counts: Sequence[SourceCounts]) -> str:
    if any(num_left for counts in all_counts if counts.side == "train" for num_left in counts.left):
        return ""
    return NO_IMAGE if _num_text(all_counts) else NO_EXAMPLE


def _usable(data: DataSection, all_counts: Sequence[SourceCounts], findings: Findings) -> str:
    trained = sum(
        num_left > 0 for counts in all_counts if counts.side == "train" for num_left in counts.left
    )
    words = [f"usable: {trained:,} of {_held(all_counts):,} records train"]
    if text := _num_text(all_counts):
        words.append(text_left_out(text))
    if bad := findings.count(*STOPPING):
        words.append(f"{_records(bad)} skipped as data.on_bad_record asks")
    if over := findings.count("too_long", side="train"):
        words.append(f"{over:,} over the limit treated as data.overflow: {data.overflow} asks")
    if unasked := _left_out(all_counts, "evaluate"):
        words.append(f"{unasked:,} questions over the limit are left out of the score")
    if shared := findings.count("overlap"):
        words.append(f"but {shared:,} questions to score on are trained on, so scores flatter")
    return "; ".join(words)


def _left_out(all_counts: Sequence[SourceCounts], side: str) -> int:
    return sum(counts.num_left_out for counts in all_counts if counts.side == side)


def _num_text(all_counts: Sequence[SourceCounts]) -> int:
    return sum(counts.num_text for counts in all_counts)


def _held(all_counts: Sequence[SourceCounts]) -> int:
    return sum(len(counts) for counts in all_counts if counts.side == "train")


def _records(count: int) -> str:
    return f"{count:,} record{'s' if count != 1 else ''}"
