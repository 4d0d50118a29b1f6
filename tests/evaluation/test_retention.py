"""Readings against plain rows, and that an answer is the same where greedy decoding writes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from varifocal.cli.retention import print_retention
from varifocal.evaluation.generation import greedy_answers
from varifocal.evaluation.readings import rate_texts
from varifocal.evaluation.retention import Retention, _Column, _rows
from varifocal.models.likelihood import EncodedQuestion, Rating

STOP = {5, 6, 7, 8, 9, 10}


@pytest.mark.parametrize("token_budget", [1, 10_000])
def test_readings_equal_plain_rows(llama, random_questions, token_budget: int) -> None:
    asked = [EncodedQuestion(one.prompt_ids, one.option_ids[:1]) for one in random_questions(6)]
    found = rate_texts(llama, asked, token_budget=token_budget)
    for one, reading in zip(asked, found, strict=True):
        option, start = one.option_ids[0], len(one.prompt_ids)
        ids = torch.tensor([[*one.prompt_ids.tolist(), *option.tolist()]])
        with torch.no_grad():
            logits = llama(input_ids=ids).logits[0, start - 1 : -1]
        told = logits.log_softmax(-1)[range(len(option)), option.tolist()]
        assert reading.score == pytest.approx(float(told.sum()), abs=1e-4)
        assert reading.tokens == len(option)
        assert reading.hits == int((logits.argmax(-1).numpy() == option).sum())


def test_what_a_model_wrote_agrees_with_it_to_the_end(llama, random_questions) -> None:
    """Any end of turn is as good as another, and one changed token is one miss or more."""
    asked = random_questions(6)
    answers = greedy_answers(llama, asked, None, stop_ids=STOP, max_new_tokens=6)
    written = [
        EncodedQuestion(one.prompt_ids, (np.array(ids if len(ids) == 6 else [*ids, 5], np.int32),))
        for one, ids in zip(asked, answers, strict=True)
    ]
    assert any(len(ids) < 6 for ids in answers)
    for reading in rate_texts(llama, written, ends=STOP):
        assert reading.hits == reading.tokens
    for one, reading in zip(written, rate_texts(llama, _changed(written), ends=STOP), strict=True):
        assert reading.hits < reading.tokens == len(one.option_ids[0])


def _changed(written: list[EncodedQuestion]) -> list[EncodedQuestion]:
    return [
        EncodedQuestion(
            one.prompt_ids, (np.append(one.option_ids[0][:-1], 60 - one.option_ids[0][-1]),)
        )
        for one in written
    ]


def column(nats: tuple[float, ...], right: tuple[float, ...], hits: tuple[int, ...]) -> _Column:
    texts = [Rating(-one, 2, 0) for one in nats]
    scenes = [Rating(-nat, 4, hit) for nat, hit in zip(nats, hits, strict=True)]
    return _Column(texts, right, [Rating(0.0, 4, one) for one in hits], scenes)


def test_a_table_on_paper(tmp_path, capsys) -> None:
    """Two texts of 2 tokens, two questions, two answers of 4 tokens."""
    base = column((2.0, 2.0), (1.0, 1.0), (4, 4))
    on = column((3.0, 3.0), (1.0, 0.0), (4, 2))
    rows = _rows({"base": base, "off": base, "on": on}, 0)
    perplexity, right, tokens, same, after, tokens_after = rows
    assert perplexity.base.value == pytest.approx(np.e)
    assert perplexity.on.value == pytest.approx(np.exp(1.5))
    assert perplexity.change is not None
    assert perplexity.change.value == pytest.approx(np.exp(0.5))  # the factor
    assert (right.on.value, right.p) == (50, 1.0)
    assert (tokens.off.value, tokens.on.value, same.on.value) == (100, 75, 50)
    assert after.on.value == pytest.approx(np.exp(0.75))
    assert after.change is not None
    assert after.change.value == pytest.approx(np.exp(0.25))
    assert (tokens_after.on.value, tokens_after.name) == (
        75,
        "answer tokens agreeing % after an image",
    )
    found = Retention(str(tmp_path), "toy", "mma", rows, {"text": "here"}, ["a note"])
    told = json.loads(found.write(tmp_path).read_text())
    print_retention([told])
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert "note: a note" in shown
    assert shown.count("x 1.") == 2  # both perplexities change by a factor
