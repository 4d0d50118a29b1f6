"""Two models on the same items: who is better, how sure that is, and on which items they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from varifocal.errors import RunError, nearest
from varifocal.evaluation.baselines import Baselines, sentences
from varifocal.evaluation.paired import Kind, Pair, PairedRow, paired_rows, tags_of
from varifocal.evaluation.predictions import Line, Predictions, find_predictions, read_predictions


@dataclass(frozen=True)
class SuiteComparison:
    """Two prediction files side by side.

    Attributes:
        suite: what they are of.
        rows: the one over all items, then measures, columns and tags; none without credit.
        pairs: every shared item.
        notes: what has to be known: items left out, other prompts, another protocol.
        baselines: of blind rules, as the score file of each says.
    """

    suite: str
    rows: Sequence[PairedRow]
    pairs: Sequence[Pair]
    notes: Sequence[str]
    baselines: tuple[Baselines, Baselines] = (Baselines(), Baselines())

    def of_kind(self, kind: Kind) -> list[Pair]:
        """Return the pairs of one kind, in the files' order."""
        return [pair for pair in self.pairs if pair.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """What `compare.json` holds of it: all items on which the two differ."""
        return {
            "suite": self.suite,
            "shared": len(self.pairs),
            "notes": list(self.notes),
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "rows": [asdict(row) for row in self.rows],
            "items": [_item(pair) for pair in self.pairs if pair.kind is not None],
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on every suite that both have predictions of.

    Attributes:
        first, second: what they are called.
        suites: in alphabetical order.
        notes: suites that only one of them has.
        seed: of the bootstrap.
    """

    first: str
    second: str
    suites: Sequence[SuiteComparison]
    notes: Sequence[str]
    seed: int

    def blind_rules(self, suite: SuiteComparison) -> list[str]:
        """Say what blind rules score under both files of a suite."""
        return sentences(suite.baselines, (self.first, self.second))

    def to_dict(self) -> dict[str, Any]:
        """What `compare.json` holds."""
        return {
            "first": self.first,
            "second": self.second,
            "seed": self.seed,
            "notes": list(self.notes),
            "suites": [
                {**suite.to_dict(), "blind_rules": self.blind_rules(suite)} for suite in self.suites
            ],
        }


def compare_runs(
    first: str | Path,
    second: str | Path,
    suites: Sequence[str] = (),
    *,
    any_prompt: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare two runs by their predictions; nothing is asked anew.

    Args:
        first: a run, an `eval` folder, or one prediction file.
        second: the same. Two files are compared whatever they are called.
        suites: only these; by default all that both have.
        any_prompt: compare items that were asked in different words too; they are counted.
        seed: of the bootstrap.

    Raises:
        RunError: there are no predictions, none of a suite that is asked for, or none that both
            have.
        DataError: a file is damaged.
    """
    places = Path(first), Path(second)
    left, right = (find_predictions(place) for place in places)
    if all(place.is_file() for place in places) and not suites:
        shared, alone = [(*left, *right)], []
    else:
        shared, alone = _shared(left, right, suites, places)
    comparisons = []
    for left_name, right_name in shared:
        read = [read_predictions(left[left_name]), read_predictions(right[right_name])]
        comparisons.append(compare_predictions(*read, any_prompt=any_prompt, seed=seed))
    return Comparison(*_names(*places), comparisons, alone, seed)


def compare_predictions(
    first: Predictions, second: Predictions, *, any_prompt: bool = False, seed: int = 0
) -> SuiteComparison:
    """Compare two prediction files on the items that both have, asked in the same words.

    Args:
        first: one model's.
        second: the other's.
        any_prompt: take items that were asked in other words too.
        seed: of the bootstrap.
    """
    ids = [id_ for id_ in first.lines if id_ in second.lines]
    other_gold = [id_ for id_ in ids if first.lines[id_].gold != second.lines[id_].gold]
    reworded = [id_ for id_ in ids if not _same_prompt(first.lines[id_], second.lines[id_])]
    out = {*other_gold, *(() if any_prompt else reworded)}
    pairs = [_pair(first.lines[id_], second.lines[id_]) for id_ in ids if id_ not in out]
    notes = [
        *_absent(first, second, len(ids)),
        *_not_asked(first, second),
        *_protocols(first, second),
    ]
    if other_gold:
        notes.append(f"{_items(len(other_gold))} left out: the files have other gold answers")
    if reworded:
        asked = f"{_items(len(reworded))} asked with different prompts (prompt_sha or the words)"
        tail = "compared all the same" if any_prompt else "left out; --any-prompt takes them in"
        notes.append(f"{asked}: {tail}")
    rows = list(paired_rows(first.suite, pairs, seed))
    if pairs and not rows:
        same = sum(pair.kind is None for pair in pairs)
        notes.append(f"the files give items no credit; {same} of {len(pairs)} answers are the same")
    suite = first.suite if first.suite == second.suite else f"{first.suite} / {second.suite}"
    return SuiteComparison(suite, rows, pairs, notes, (first.baselines, second.baselines))


def _shared(
    left: Mapping[str, Path],
    right: Mapping[str, Path],
    suites: Sequence[str],
    places: tuple[Path, Path],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the suites that both have, and a sentence for those that one has."""
    for suite in suites:
        for place, available in zip(places, (left, right), strict=True):
            if suite not in available:
                raise RunError(
                    f"{place} has no predictions of '{suite}'{nearest(suite, available)} "
                    f"(it has: {', '.join(available)})"
                )
    both = [name for name in left if name in right and (not suites or name in suites)]
    if not both:
        has = [
            f"{place} has {', '.join(names)}"
            for place, names in zip(places, (left, right), strict=True)
        ]
        raise RunError(
            f"no suite that both have predictions of: {'; '.join(has)}. Score both on the same "
            "with: varifocal eval RUN, or name two prediction files"
        )
    sides = zip(places, (left, right), (right, left), strict=True)
    alone = [
        f"only {place} has predictions of {', '.join(name for name in own if name not in other)}"
        for place, own, other in sides
        if set(own) - set(other) and not suites
    ]
    return [(name, name) for name in both], alone


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Call each by its run's directory or file, or by its whole path where both are the same."""
    short = []
    for place in (first.resolve(), second.resolve()):
        run = place.parent if place.name == "eval" else place
        short.append(run.name.removesuffix(".predictions.jsonl"))
    return (short[0], short[1]) if short[0] != short[1] else (str(first), str(second))


def _same_prompt(first: Line, second: Line) -> bool:
    """Hold the prompts' digests against one another, or what else is known of the words."""
    if first.prompt_sha is not None and second.prompt_sha is not None:
        return first.prompt_sha == second.prompt_sha
    known = first.question and second.question
    return not known or (first.question, first.options) == (second.question, second.options)


def _pair(first: Line, second: Line) -> Pair:
    kind: Kind | None = None
    if first.credit is not None and second.credit is not None and first.credit != second.credit:
        kind = "won" if second.credit > first.credit else "lost"
    elif (first.answer, first.is_read) != (second.answer, second.is_read):
        kind = "changed"
    return Pair(kind, first, second)


def _absent(first: Predictions, second: Predictions, shared: int) -> Iterator[str]:
    for number, predictions in enumerate((first, second)):
        if alone := len(predictions.lines) - shared:
            yield f"{_items(alone)} that only the {('first', 'second')[number]} has: left out"


def _not_asked(first: Predictions, second: Predictions) -> Iterator[str]:
    """Say of how many items a file knows that they could not be asked."""
    for number, predictions in enumerate((first, second)):
        if predictions.left_out:
            which = ("first", "second")[number]
            yield f"{_items(predictions.left_out)} that the {which} could not be asked: left out"


def _protocols(first: Predictions, second: Predictions) -> Iterator[str]:
    """Say how the making of the answers differs, where both files tell."""
    before, after = first.protocol, second.protocol
    if before and after:
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                yield f"the protocol differs in {key}: {before.get(key)} / {after.get(key)}"


def _items(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"


def _item(pair: Pair) -> dict[str, Any]:
    """What `compare.json` says of an item."""
    first, second = pair.first, pair.second
    return {
        "kind": pair.kind,
        "id": first.id,
        "question": first.question or second.question,
        "options": list(first.options or second.options),
        "gold": first.gold,
        "answers": [first.answer, second.answer],
        "read": [first.is_read, second.is_read],
        "credits": [first.credit, second.credit],
        "images": list(first.images or second.images),
        "tags": dict(tags_of(pair)),
        "columns": list(first.columns),
    }
