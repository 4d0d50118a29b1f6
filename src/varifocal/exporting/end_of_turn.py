"""Whether an export ends its answers where the run does: at the end of turn that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from varifocal.assemble import Assembly
from varifocal.data.example import Example
from varifocal.errors import ModelError
from varifocal.exporting.parity import Case, placed, references, row_of
from varifocal.models.decoding import decode, stop_ids
from varifocal.tuners.plugin import evaluating

MOST_TOKENS = 32
"""An answer of the run that is longer is not followed to its end."""


@dataclass(frozen=True)
class Answered:
    """A prompt and the run's own greedy answer.

    Attributes:
        case: the prompt, as the language model is given it.
        ids: the answer, with the token that ended it; at most `MOST_TOKENS`.
        ended: whether it came to its end.
    """

    case: Case
    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Stops:
    """How an export's answers end.

    Attributes:
        end_of_turn: id of the token that ends an assistant's turn in the run's chat template.
        stop_ids: where generation stops: `eos_token_id` of what was written.
        answers: how many were written by both.
        same: how many were the same tokens.
        ended: how many of the run's came to their end.
    """

    end_of_turn: int
    stop_ids: tuple[int, ...]
    answers: int
    same: int
    ended: int


def answers_of_run(
    parts: Assembly, examples: Sequence[Example], modality: int | None
) -> tuple[list[Example], list[Answered]]:
    """Let the trained model answer the first and the last prompt.

    Args:
        parts: the trained model and its encoder.
        examples: conversations; closing answers are left out.
        modality: the route that the rows take, 0 text or 1 image; None takes each row's own.

    Returns:
        The prompts, and the run's answers.
    """
    chosen = examples if len(examples) < 2 else (examples[0], examples[-1])
    asked = [_asked(example) for example in chosen]
    cases = references(parts, asked, modality)
    with evaluating(parts.model):
        answers = [
            _answer(parts, case, example, modality)
            for case, example in zip(cases, asked, strict=True)
        ]
    return asked, answers


def check_stops(
    model: Any, answered: Sequence[Answered], end_of_turn: int, ends: Sequence[int], what: str
) -> Stops:
    """Let an export answer, and refuse one that goes on where the run has stopped, or stops before.

    Args:
        model: the export, opened.
        answered: the run's answers.
        end_of_turn: the token that ends a turn in the run's chat template.
        ends: where the export says that it stops.
        what: the export, for the error.

    Raises:
        ModelError: it does not stop at the end of turn, or ends an answer elsewhere than the run.
    """
    same = 0
    for answer in answered:
        forced = _generate(model, answer.case, ends, [_Writes(end_of_turn)])
        if len(forced) != 1:
            raise ModelError(
                f"{what} does not stop at the end of turn {end_of_turn}: it stops at {list(ends)}; "
                "nothing was written. Report this with the run's recipe"
            )
        ids = _generate(model, answer.case, ends, [])
        same += ids == answer.ids
        shared = min(len(ids), len(answer.ids))
        if ids[:shared] == answer.ids[:shared] and len(ids) != len(answer.ids):
            raise ModelError(
                f"{what} ends an answer after {len(ids)} tokens, and the run the same one after "
                f"{len(answer.ids)}; nothing was written. Report this with the run's recipe"
            )
    ended = sum(answer.ended for answer in answered)
    return Stops(end_of_turn, tuple(ends), len(answered), same, ended)


class _Writes(LogitsProcessor):
    """Makes a model write one token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, self.token] = 0
        return only


def _asked(example: Example) -> Example:
    """Leave a closing answer out."""
    answered = example.messages[-1].role == "assistant"
    return replace(example, messages=example.messages[:-1]) if answered else example


def _answer(parts: Assembly, case: Case, example: Example, modality: int | None) -> Answered:
    ends = stop_ids(parts.base, parts.encoder.end_of_turn_id)
    row, shown, _ = row_of(parts, example, modality)
    ids: list[int] = []
    for token in decode(parts.model, row, shown, max_new_tokens=MOST_TOKENS):
        ids.append(int(token))
        if ids[-1] in ends:
            break
    return Answered(case, tuple(ids), ids[-1] in ends)


def _generate(
    model: Any, case: Case, ends: Sequence[int], processors: list[LogitsProcessor]
) -> tuple[int, ...]:
    """Write greedily as transformers does, without what else the base's config asks for."""
    own = model.generation_config
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MOST_TOKENS,
        eos_token_id=list(ends),
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else ends[0],
        bos_token_id=own.bos_token_id,
        suppress_tokens=own.suppress_tokens,
    )
    given = placed(model, case.inputs)
    fed = given.get("input_ids", given.get("inputs_embeds"))
    assert fed is not None
    given["attention_mask"] = torch.ones(fed.shape[:2], dtype=torch.long, device=fed.device)
    with torch.no_grad(), evaluating(model):
        written = model.generate(**given, generation_config=config, logits_processor=processors)
    start = fed.shape[1] if "input_ids" in given else 0
    return tuple(written[0, start:].tolist())
