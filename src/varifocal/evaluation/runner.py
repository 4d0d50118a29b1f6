"""Ask items, store every answer as it comes, and measure them: benchmarks, sources, retention.

Answers are appended to `NAME.predictions.jsonl` batch by batch, so that a killed run has lost one
batch; the same call goes on with what is left. At the end the lines are put into the items' order,
and `NAME.json` gets the measures.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from varifocal.data.json_files import OnBadRecord
from varifocal.errors import DataError
from varifocal.evaluation.baselines import Baselines
from varifocal.evaluation.benchmark import (
    Answer,
    Answered,
    Benchmark,
    Item,
    Measure,
    Method,
    Prompt,
)
from varifocal.evaluation.evaluated_model import Asker, without_images
from varifocal.evaluation.generation import evaluation_mode
from varifocal.evaluation.predictions import Ledger, line_of
from varifocal.evaluation.reference_scores import baselines_of, by_normalisation, likeliest_answer
from varifocal.models.likelihood import Normalisation, batch_by_length
from varifocal.progress import Progress, silent
from varifocal.writing import write_json

MOST_NAMED = 100
"""Items left out that a score file names; all are counted."""

_RECORDED = ("varifocal", "torch", "transformers", "peft", "tokenizers", "pillow")


@dataclass(frozen=True)
class About:
    """Who is asked; it goes into the score file.

    Attributes:
        model: name or place.
        adapter: place of the adapter, or None.
        fingerprint: digest of all weights; None keeps nothing of an earlier call, since nobody can
            tell whether its answers are this model's.
        seed: of the run's recipe; answers are greedy and need none.
        dtype: number format of the weights.
        command: what repeats it.
        strength: factor on what the adapter changes.
    """

    model: str = ""
    adapter: str | None = None
    fingerprint: str | None = None
    seed: int = 0
    dtype: str = ""
    command: str = ""
    strength: float = 1.0


@dataclass(frozen=True)
class AskOptions:
    """How a benchmark is asked.

    Attributes:
        method: None takes the benchmark's own.
        blind: leave the images out of the prompts.
        split: None takes the one that is reported.
        limit: only the first items; None for all.
        batch_size: questions of a forward pass; it does not change what is answered.
        token_budget: most tokens of a forward pass, padding and written answers included, in place
            of `batch_size`.
        on_bad_record: an item that cannot be asked, as one whose image is missing: stop, or leave
            it out and count it.
    """

    method: Method | None = None
    blind: bool = False
    split: str | None = None
    limit: int | None = None
    batch_size: int = 8
    token_budget: int | None = None
    on_bad_record: OnBadRecord = "fail"

    def stem(self, benchmark: Benchmark, strength: float = 1.0) -> str:
        """Name the files of the scores: everything that is not the benchmark's own is in it."""
        words = [benchmark.name, benchmark.prompts and benchmark.prompts.name, self.split]
        words.append(self.method if self.method not in (None, benchmark.method) else None)
        words.append("blind" if self.blind else None)
        words.append(f"first{self.limit}" if self.limit is not None else None)
        words.append(f"strength-{strength:g}" if strength != 1 else None)
        return "-".join(filter(None, words))


@dataclass(frozen=True)
class Asked:
    """Items with their answers.

    Attributes:
        name: of their file.
        answered: every item with its answer, in the items' order.
        prompts: by the item's id.
        num_stored: how many answers an earlier call had left.
        left_out: one sentence for each item that could not be asked.
    """

    name: str
    answered: Sequence[Answered]
    prompts: Mapping[str, Prompt]
    num_stored: int
    left_out: Sequence[str]


@dataclass(frozen=True)
class Result:
    """A benchmark's scores.

    Attributes:
        name: of its files.
        benchmark: the row.
        measures: its numbers.
        answered: every item with its answer, in the items' order.
        file: where the scores stand.
        num_stored: how many answers an earlier call had left.
        num_cut: prompts that were shortened to fit into the model's window.
        left_out: one sentence for each item that could not be asked; the measures are without it.
        baselines: what blind rules would score, in the unit of the main measure.
        by_normalisation: the main measure by the sum over a choice's tokens and by their mean;
            empty where answers are written.
    """

    name: str
    benchmark: Benchmark
    measures: Sequence[Measure]
    answered: Sequence[Answered]
    file: Path
    num_stored: int
    num_cut: int
    left_out: Sequence[str] = ()
    baselines: Baselines = field(default_factory=Baselines)
    by_normalisation: Mapping[Normalisation, float] = field(default_factory=dict)


def run(
    benchmark: Benchmark,
    items: Iterable[Item],
    asker: Asker,
    directory: Path,
    *,
    options: AskOptions | None = None,
    about: About | None = None,
    progress: Progress | None = None,
    left_out: Sequence[str] = (),
) -> Result:
    """Ask what is not answered yet, score everything, and write `NAME.json`.

    Arguments and errors are those of `ask_items`.
    """
    options, about = options or AskOptions(), about or About()
    asked = ask_items(
        benchmark, items, asker, directory,
        options=options, about=about, progress=progress, left_out=left_out,
    )  # fmt: skip
    result = Result(
        asked.name,
        benchmark,
        benchmark.measure(asked.answered),
        asked.answered,
        directory / f"{asked.name}.json",
        asked.num_stored,
        sum(prompt.was_cut for prompt in asked.prompts.values()),
        asked.left_out,
        baselines_of(benchmark, [item for item, _ in asked.answered]),
        by_normalisation(benchmark, asked.answered, asked.prompts),
    )
    write_json(result.file, _page(result, options, about, asked.prompts))
    return result


def ask_items(
    benchmark: Benchmark,
    items: Iterable[Item],
    asker: Asker,
    directory: Path,
    *,
    options: AskOptions | None = None,
    about: About | None = None,
    progress: Progress | None = None,
    left_out: Sequence[str] = (),
) -> Asked:
    """Ask what is not answered yet, and store every answer in `NAME.predictions.jsonl`.

    Args:
        benchmark: a row of the table.
        items: its questions; their gold answers never reach a prompt.
        asker: the model.
        directory: where the files go.
        options: how it is asked; as the benchmark's own row says by default.
        about: who is asked.
        progress: told of every batch, with the time that is left.
        left_out: sentences on records of which no item could be made; they are counted as well.

    Raises:
        DataError: there are no items, two have one id, or one cannot be asked and `options` do not
            say that such ones are left out.
        RunError: the predictions cannot be written, or another call writes them.
    """
    options, about, items = options or AskOptions(), about or About(), list(items)
    name = options.stem(benchmark, about.strength)
    _check(benchmark, items)
    session = _Session(name, benchmark, asker, options, progress or silent)
    prompts, not_asked = session.prepare(items)
    left_out = [*left_out, *not_asked]
    if not prompts:
        raise DataError(f"{name}: all {len(left_out):,} items are left out; {left_out[0]}")
    items = [item for item in items if item.id in prompts]
    ledger = Ledger(directory / f"{name}.predictions.jsonl", _identity(benchmark, options, about))
    with ledger.alone():
        answers = ledger.read(prompts, about.fingerprint is not None)
        num_answered = len(answers)
        with ledger.open() as write, evaluation_mode(asker.model):
            for item, answer in session.ask(items, prompts, answers):
                answers[item.id] = answer
                write(line_of(benchmark, item, prompts[item.id], answer))
        answered = [(item, _read(benchmark, item, answers[item.id])) for item in items]
        ledger.finish(
            [line_of(benchmark, item, prompts[item.id], answer) for item, answer in answered]
        )
    return Asked(name, answered, prompts, num_answered, left_out)


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices, the longest first: what does not fit into memory shows at once.

    >>> list(batches([3, 9, 4], 2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _check(benchmark: Benchmark, items: Sequence[Item]) -> None:
    if not items:
        raise DataError(f"{benchmark.name}: there are no items to ask")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DataError(
            f"{benchmark.name}: {len(twice)} ids stand for more than one item, '{twice[0]}' first; "
            "answers are kept by id, so each needs its own"
        )


class _Session:
    """A benchmark put to a model."""

    def __init__(
        self, name: str, benchmark: Benchmark, asker: Asker, options: AskOptions, progress: Progress
    ) -> None:
        self._name, self._benchmark, self._asker = name, benchmark, asker
        self._options, self._progress = options, progress
        self._by_likelihood = (options.method or benchmark.method) == "likelihood"

    def prepare(self, items: Sequence[Item]) -> tuple[dict[str, Prompt], list[str]]:
        """Write every prompt, by the item's id; and a sentence for each item that is left out."""
        prompts: dict[str, Prompt] = {}
        left_out: list[str] = []
        for number, item in enumerate(items, start=1):
            try:
                prompts[item.id] = self._prepare(item)
            except DataError as error:
                if self._options.on_bad_record == "fail":
                    raise DataError(f"{self._name}, item '{item.id}': {error}; {_FIX}") from error
                left_out.append(f"item '{item.id}': {error}")
            self._progress(f"{self._name}: prompts", number, len(items))
        return prompts, left_out

    def _prepare(self, item: Item) -> Prompt:
        """Write a prompt; its images are decoded, so that a damaged one is found here."""
        asked = without_images(item.asked) if self._options.blind else item.asked
        if self._by_likelihood and not asked.choices:
            raise DataError(f"{asked.name}: no choices; their likelihood cannot be compared")
        for image in asked.images:
            image.open()
        return self._asker.prepare(asked, with_options=self._by_likelihood)

    def ask(
        self,
        items: Sequence[Item],
        prompts: Mapping[str, Prompt],
        known: Mapping[str, Answer],
    ) -> Iterator[Answered]:
        """Yield the answers that are missing, as they come."""
        left = [item for item in items if item.id not in known]
        lengths = [prompts[item.id].length for item in left]
        started, tokens, done = time.monotonic(), 0, len(items) - len(left)
        self._progress(self._name, done, len(items))
        for batch in self._batches(lengths):
            yield from self._answer([left[index] for index in batch], prompts)
            tokens, done = tokens + sum(lengths[index] for index in batch), done + len(batch)
            seconds = (time.monotonic() - started) * (sum(lengths) - tokens) / tokens
            note = f"{_span(seconds)} left" if done < len(items) else ""
            self._progress(self._name, done, len(items), note)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        budget = self._options.token_budget
        if budget is None:
            return batches(lengths, self._options.batch_size)
        written = 0 if self._by_likelihood else self._benchmark.max_new_tokens
        return batch_by_length([length + written for length in lengths], budget)

    def _answer(self, items: Sequence[Item], prompts: Mapping[str, Prompt]) -> Iterator[Answered]:
        """Ask one batch."""
        benchmark, chosen = self._benchmark, [prompts[item.id] for item in items]
        if self._by_likelihood:
            answers = self._asker.score(chosen, benchmark.normalisation)
        else:
            answers = self._asker.write(chosen, benchmark.max_new_tokens)
        for item, answer in zip(items, answers, strict=True):
            yield item, _read(benchmark, item, answer)


_FIX = (
    "fix it, or leave such items out of the score with --on-bad-record skip (--blind needs no "
    "images)"
)


def _span(seconds: float) -> str:
    """Write a time for a person.

    >>> _span(42), _span(200), _span(7300)
    ('42 s', '3 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _read(benchmark: Benchmark, item: Item, answer: Answer) -> Answer:
    """Say what an answer names; a kept one is read anew, by the parser as it is now."""
    if answer.text is None:
        return likeliest_answer(item, answer)
    return replace(answer, parsed=benchmark.parse(answer.text, item))


def _identity(benchmark: Benchmark, options: AskOptions, about: About) -> str:
    """Digest what decides an answer next to its prompt."""
    identity = {
        "weights": about.fingerprint,
        "dtype": about.dtype,
        "method": options.method or benchmark.method,
        "normalisation": benchmark.normalisation,
        "max_new_tokens": benchmark.max_new_tokens,
    }
    if about.strength != 1:  # files of before the option go on at 1
        identity["strength"] = about.strength
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _page(
    result: Result, options: AskOptions, about: About, prompts: Mapping[str, Prompt]
) -> dict[str, Any]:
    """Return what `NAME.json` holds."""
    benchmark, answered = result.benchmark, result.answered
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _RECORDED}
    shas = "".join(prompts[item.id].sha + repr(item.references) for item, _ in answered)
    return {
        "benchmark": benchmark.name,
        "main": benchmark.main,
        "measures": [asdict(measure) for measure in result.measures],
        "baselines": asdict(result.baselines),
        "by_normalisation": dict(result.by_normalisation),
        "items": len(answered),
        "items_left_out": len(result.left_out),
        "left_out": list(result.left_out[:MOST_NAMED]),
        "unparsed": sum(answer.parsed is None for _, answer in answered),
        "shortened_prompts": result.num_cut,
        "method": options.method or benchmark.method,
        "blind": options.blind,
        "split": options.split,
        "limit": options.limit,
        "prompts": None if benchmark.prompts is None else asdict(benchmark.prompts),
        "protocol": benchmark.protocol,
        "source": benchmark.source,
        "data": hashlib.sha256(shas.encode()).hexdigest(),
        **asdict(about),
        "versions": versions,
    }
