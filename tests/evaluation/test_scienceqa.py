"""ScienceQA's columns on cases worked out by hand, and whole evaluations on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError
from varifocal.evaluation import scienceqa
from varifocal.evaluation.likelihood import score_options
from varifocal.evaluation.scienceqa import COLUMNS, Prediction, columns_of, evaluate, tabulate

PICTURE = Image(data=b"never opened here")
NATURAL, SOCIAL, LANGUAGE = "natural science", "social science", "language science"


def example(
    subject: str = NATURAL,
    grade: str = "grade3",
    hint: str = "no",
    picture: bool = False,
    answer: int = 1,
    choices: tuple[str, ...] = ("attract", "repel", "rest"),
    **changes,
) -> Example:
    asked = f"Question: Which?\nOptions: {choices}"
    content = (PICTURE, asked) if picture else (asked,)
    fields = {
        "messages": (Message("user", content), Message("assistant", (choices[answer],))),
        "id": "7",
        "choices": choices,
        "answer_index": answer,
        "tags": {"subject": subject, "grade": grade, "hint": hint},
    }
    return Example(**{**fields, **changes})


@pytest.mark.parametrize(
    ("question", "columns"),
    [
        (example(), "NAT NO G1-6 average"),
        (example(SOCIAL, "grade6", "yes"), "SOC TXT G1-6 average"),
        (example(LANGUAGE, "grade7", picture=True), "LAN IMG G7-12 average"),
        (example(NATURAL, "grade12", "yes", picture=True), "NAT TXT IMG G7-12 average"),
        (example(SOCIAL, "grade1"), "SOC NO G1-6 average"),
        (example("history", "kindergarten"), "NO average"),
        (replace(example(), tags={}), "NO average"),
    ],
)
def test_columns(question: Example, columns: str) -> None:
    assert columns_of(question) == tuple(columns.split())


def prediction(columns: str, correct: bool, options: int = 2, read: bool = True) -> Prediction:
    return Prediction(
        id="", columns=(*columns.split(), "average"), question="", gold=0,
        options=("x",) * options, prediction=(0 if correct else 1) if read else None,
        correct=correct,
    )  # fmt: skip


def test_a_table_on_paper() -> None:
    """Eight questions; every cell below was counted by hand.

    NAT: 1 2 3 4, right 1 2 4.    SOC: 5 6, right 5.     LAN: 7 8, right 8.
    TXT: 2 3 7, right 2.          IMG: 3 4 5, right 4 5.  NO: 1 6 8, right 1 8.
    G1-6: 1 3 5 7, right 1 5.     G7-12: 2 4 6 8, right 2 4 8.
    """
    table = tabulate(
        [
            prediction("NAT NO G1-6", True),  # 1
            prediction("NAT TXT G7-12", True, options=4),  # 2
            prediction("NAT TXT IMG G1-6", False),  # 3: counts in both contexts
            prediction("NAT IMG G7-12", True, options=4),  # 4
            prediction("SOC IMG G1-6", True),  # 5
            prediction("SOC NO G7-12", False, read=False),  # 6
            prediction("LAN TXT G1-6", False, options=4),  # 7
            prediction("LAN NO G7-12", True, options=4),  # 8
        ]
    )
    assert tuple(table) == COLUMNS
    counts = {name: (score.correct, score.count, score.unparsed) for name, score in table.items()}
    assert counts == {
        "NAT": (3, 4, 0),
        "SOC": (1, 2, 1),
        "LAN": (1, 2, 0),
        "TXT": (1, 3, 0),
        "IMG": (2, 3, 0),
        "NO": (2, 3, 1),
        "G1-6": (2, 4, 0),
        "G7-12": (3, 4, 1),
        "average": (5, 8, 1),
    }
    assert table["NAT"].accuracy == 75.0
    assert table["average"].accuracy == 62.5  # over questions; over columns it would be another
    assert table["average"].chance == pytest.approx(37.5)  # (4 x 1/2 + 4 x 1/4) / 8
    assert table["NAT"].low == pytest.approx(30.06, abs=0.01)
    assert table["NAT"].high == pytest.approx(95.44, abs=0.01)


def test_an_empty_column_has_no_accuracy() -> None:
    score = tabulate([prediction("NAT NO G1-6", True)])["IMG"]
    assert (score.count, score.accuracy, score.low, score.chance) == (0, None, None, None)


@pytest.fixture
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer, "<|image|>", tokens_per_image=2)


@pytest.fixture
def examples() -> list[Example]:
    return [
        example(id="a", choices=("up", "down"), answer=0),
        example(LANGUAGE, "grade8", id="b", choices=("noun", "verb", "a very long one"), answer=2),
        example(SOCIAL, "grade5", "yes", id="c", choices=("north", "south", "east", "west")),
    ]


def test_the_likeliest_option_is_taken(chat_llama, encoder, examples) -> None:
    report = evaluate(chat_llama, encoder, examples)
    for one, asked in zip(report.predictions, examples, strict=True):
        alone = score_options(chat_llama, [scienceqa.ask(encoder, asked)])[0]
        assert one.scores == pytest.approx(alone, abs=1e-9)
        assert one.prediction == int(np.argmax(alone))
        assert one.correct == (one.prediction == asked.answer_index)
        assert (one.id, one.options, one.text) == (asked.id, asked.choices, None)
    assert report.columns["average"].correct == sum(one.correct for one in report.predictions)


def test_any_batch_gives_the_same_scores(chat_llama, encoder, examples) -> None:
    alone = evaluate(chat_llama, encoder, examples, token_budget=1)
    together = evaluate(chat_llama, encoder, examples, token_budget=100_000)
    for a, b in zip(alone.predictions, together.predictions, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-9)


def test_the_files_say_what_was_found(chat_llama, encoder, examples, tmp_path: Path) -> None:
    report = evaluate(chat_llama, encoder, examples, suite="sciencebook")
    scores, lines = report.write(tmp_path / "eval")
    assert sorted(path.name for path in scores.parent.iterdir()) == [
        "sciencebook.json",
        "sciencebook.predictions.jsonl",
    ]
    written = json.loads(scores.read_text())
    assert written["suite"] == "sciencebook"
    assert written["protocol"] == {"method": "likelihood", "blind": False, "normalisation": "sum"}
    assert written["columns"]["average"]["count"] == 3
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["id"] for record in records] == ["a", "b", "c"]
    assert records[2]["options"] == ["north", "south", "east", "west"]
    assert records[2]["question"].startswith("Question: Which?")
    assert records[2]["columns"] == ["SOC", "TXT", "G1-6", "average"]


def prompts_seen(model, encoder, examples, method: str) -> list[list[int]]:
    """Every id that reaches the model."""
    seen: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    evaluate(model, encoder, examples, method=method, max_new_tokens=3)
    hook.remove()
    return seen


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_prompts_never_see_the_gold_answer(chat_llama, encoder, examples, method: str) -> None:
    relabelled = []
    for one in examples:
        answer = (one.answer_index + 1) % len(one.choices)
        turns = (*one.messages[:-1], Message("assistant", (one.choices[answer],)))
        relabelled.append(replace(one, answer_index=answer, messages=turns))
    given = prompts_seen(chat_llama, encoder, examples, method)
    assert given == prompts_seen(chat_llama, encoder, relabelled, method)
    assert given


def write(model, encoder, text: str) -> None:
    """Make the model write a text and end its turn, whatever it is asked."""
    ids = [*encoder.tokenizer(text).input_ids, encoder.tokenizer.eos_token_id]
    state = {"step": 0}

    def force(module, args, kwargs, output) -> None:
        if kwargs["past_key_values"] is None:
            state["step"] = 0
        output.logits[..., ids[min(state["step"], len(ids) - 1)]] += 1e6
        state["step"] += 1

    model.register_forward_hook(force, with_kwargs=True)


def test_what_cannot_be_read_is_a_column_of_its_own(chat_llama, encoder, examples) -> None:
    write(chat_llama, encoder, "The answer is C.")
    report = evaluate(chat_llama, encoder, examples, method="generate")
    assert [one.text for one in report.predictions] == ["The answer is C."] * 3
    assert [one.prediction for one in report.predictions] == [None, 2, 2]
    assert [one.correct for one in report.predictions] == [False, True, False]
    average = report.columns["average"]
    assert (average.correct, average.unparsed, average.count) == (1, 1, 3)
    assert report.columns["NAT"].unparsed == 1


def test_blind_leaves_the_picture_out_but_not_its_column(chat_llama, encoder) -> None:
    with_picture, without = example(picture=True), example()
    report = evaluate(chat_llama, encoder, [with_picture, without], blind=True)
    seen, plain = report.predictions
    assert seen.scores == pytest.approx(plain.scores, abs=1e-9)
    assert "IMG" in seen.columns
    assert "IMG" not in plain.columns


def test_the_models_mode_is_restored(chat_llama, encoder, examples) -> None:
    chat_llama.train()
    chat_llama.lm_head.eval()
    modes: list[bool] = []
    hook = chat_llama.register_forward_hook(lambda module, *_: modes.append(module.training))
    evaluate(chat_llama, encoder, examples)
    hook.remove()
    assert modes
    assert not any(modes)
    assert chat_llama.training
    assert chat_llama.model.training
    assert not chat_llama.lm_head.training


@pytest.mark.parametrize(
    ("examples_", "message"),
    [
        ([], "no questions"),
        ([replace(example(), answer_index=None)], "record '7': no gold answer"),
        ([Example((Message("user", ("Hi",)),), id="8", answer_index=None)], "record '8'"),
    ],
)
def test_what_cannot_be_scored_is_refused(chat_llama, encoder, examples_, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(chat_llama, encoder, examples_)


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)])
def test_order_does_not_matter_where_the_prompt_does_not_list_options(
    chat_llama, encoder, order: tuple[int, ...]
) -> None:
    texts, asked = ("up", "down", "left", "to the right"), Message("user", ("Which way?",))
    turned = tuple(texts[index] for index in order)
    plain = Example((asked,), choices=texts, answer_index=3)
    other = Example((asked,), choices=turned, answer_index=turned.index(texts[3]))
    first, second = evaluate(chat_llama, encoder, [plain, other]).predictions
    assert second.scores == pytest.approx([first.scores[index] for index in order], abs=1e-9)
    assert first.correct == second.correct


def test_a_score_is_the_training_loss_of_that_answer(chat_llama, encoder, examples) -> None:
    """transformers' own loss on the encoded example, summed over its trained tokens."""
    report = evaluate(chat_llama, encoder, examples)
    for one, asked in zip(report.predictions, examples, strict=True):
        encoded = encoder.encode(asked)
        ids, labels = (
            torch.from_numpy(x).long()[None] for x in (encoded.input_ids, encoded.labels)
        )
        with torch.no_grad():
            loss = float(chat_llama(input_ids=ids, labels=labels).loss)
        loss *= (~encoded.prompt_mask).sum()
        assert one.scores[one.gold] == pytest.approx(-loss, rel=1e-6)  # float32 loss


def test_scores_need_no_gradient(chat_llama, encoder, examples) -> None:
    evaluate(chat_llama, encoder, examples)
    assert all(parameter.grad is None for parameter in chat_llama.parameters())
    assert torch.is_grad_enabled()
