"""What stands next to a benchmark's score: blind rules, and likelihood by sum and by mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from varifocal.evaluation import baselines
from varifocal.evaluation.baselines import Baselines
from varifocal.evaluation.benchmark import Answer, Answered, Benchmark, Item, Prompt
from varifocal.models.likelihood import NORMALISATIONS, Normalisation, best_option, by_mean


def baselines_of(benchmark: Benchmark, items: Sequence[Item]) -> Baselines:
    """Score blind rules by a benchmark's main measure."""
    gold = [(item.example.choices, item.example.answer_index) for item in items]
    known = [(choices, right) for choices, right in gold if right is not None and choices]
    if len(known) == len(items):
        return baselines.of_choices(known)
    return baselines.of_open(
        items,
        lambda text, item: Answer(text, parsed=benchmark.parse(text, item)),
        benchmark.credit,
        lambda answered: _main_of(benchmark, answered),
    )


def _main_of(benchmark: Benchmark, answered: Sequence[Answered]) -> float | None:
    """Return the headline measure; None where too few items make none, as one subtask of MME."""
    measures = benchmark.measure(answered)
    return next((measure.value for measure in measures if measure.name == benchmark.main), None)


def by_normalisation(
    benchmark: Benchmark, answered: Sequence[Answered], prompts: Mapping[str, Prompt]
) -> dict[Normalisation, float]:
    """Return the main measure by sums and by means, where the scores tell both."""
    if any(answer.choice is None for _, answer in answered):
        return {}
    own, scores = benchmark.normalisation, {}
    for rule in NORMALISATIONS:
        again = [
            (
                item,
                likeliest_answer(
                    item,
                    replace(
                        answer,
                        scores=_as(own, rule, answer.scores, prompts[item.id].option_lengths),
                    ),
                ),
            )
            for item, answer in answered
        ]
        score = _main_of(benchmark, again)
        if score is not None:
            scores[rule] = score
    return scores


def _as(
    own: Normalisation, wanted: Normalisation, scores: Sequence[float], lengths: Sequence[int]
) -> Sequence[float]:
    if own == wanted:
        return scores
    if wanted == "mean":
        return by_mean(scores, lengths)
    return [score * length for score, length in zip(scores, lengths, strict=True)]


def likeliest_answer(item: Item, answer: Answer) -> Answer:
    """Add to an answer's scores the choice that the best of them names."""
    choice = best_option(answer.scores)
    return replace(answer, choice=choice, parsed=item.example.choices[choice])
