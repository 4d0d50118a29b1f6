"""ScienceQA's columns on cases worked out by hand, and whole evaluations on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answer, Item
from varifocal.evaluation.benchmarks.scienceqa import COLUMNS, by_column, columns_of
from varifocal.models.likelihood import EncodedQuestion, score_options

IMAGE = Image(data=b"never opened here")
NATURAL, SOCIAL, LANGUAGE = "natural science", "social science", "language science"


def example(
    subject: str = NATURAL,
    grade: str = "grade3",
    hint: str = "no",
    image: bool = False,
    answer: int = 1,
    choices: tuple[str, ...] = ("attract", "repel", "rest"),
    **changes,
) -> Example:
    asked = f"Question: Which?\nOptions: {choices}"
    content = (IMAGE, asked) if image else (asked,)
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
        (example(LANGUAGE, "grade7", image=True), "LAN IMG G7-12 average"),
        (example(NATURAL, "grade12", "yes", image=True), "NAT TXT IMG G7-12 average"),
        (example(SOCIAL, "grade1"), "SOC NO G1-6 average"),
        (example("history", "kindergarten"), "NO average"),
        (replace(example(), tags={}), "NO average"),
    ],
)
def test_columns(question: Example, columns: str) -> None:
    assert columns_of(question) == tuple(columns.split())


SUBJECTS = {"NAT": NATURAL, "SOC": SOCIAL, "LAN": LANGUAGE}


def answered(columns: str, correct: bool, options: int = 2, read: bool = True):
    """An item of these columns with its answer; the first option is right."""
    subject, *contexts, grades = columns.split()
    asked = example(
        SUBJECTS[subject],
        "grade3" if grades == "G1-6" else "grade8",
        "yes" if "TXT" in contexts else "no",
        "IMG" in contexts,
        answer=0,
        choices=tuple("abcd"[:options]),
    )
    assert columns_of(asked) == (*columns.split(), "average")
    said = Answer("", parsed=None)
    if read:
        said = Answer(choice=0 if correct else 1, parsed="a" if correct else "b")
    return Item("", asked, ("a",)), said


def test_a_table_on_paper() -> None:
    """Eight questions; every cell below was counted by hand.

    NAT: 1 2 3 4, right 1 2 4.    SOC: 5 6, right 5.     LAN: 7 8, right 8.
    TXT: 2 3 7, right 2.          IMG: 3 4 5, right 4 5.  NO: 1 6 8, right 1 8.
    G1-6: 1 3 5 7, right 1 5.     G7-12: 2 4 6 8, right 2 4 8.
    """
    found = by_column(
        [
            answered("NAT NO G1-6", True),  # 1
            answered("NAT TXT G7-12", True, options=4),  # 2
            answered("NAT TXT IMG G1-6", False),  # 3: counts in both contexts
            answered("NAT IMG G7-12", True, options=4),  # 4
            answered("SOC IMG G1-6", True),  # 5
            answered("SOC NO G7-12", False, read=False),  # 6
            answered("LAN TXT G1-6", False, options=4),  # 7
            answered("LAN NO G7-12", True, options=4),  # 8
        ]
    )
    assert tuple(one.name for one in found) == COLUMNS
    table = {one.name: one for one in found}
    counts = {
        one.name: (round(one.value * one.count / 100, 9), one.count, one.unparsed) for one in found
    }
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
    assert table["NAT"].value == 75.0
    assert table["average"].value == 62.5  # over questions; over columns it would be another
    assert table["average"].chance == pytest.approx(37.5)  # (4 x 1/2 + 4 x 1/4) / 8
    assert table["IMG"].chance == pytest.approx(100 * (1 / 2 + 1 / 4 + 1 / 2) / 3)
    assert table["NAT"].low == pytest.approx(30.06, abs=0.01)
    assert table["NAT"].high == pytest.approx(95.44, abs=0.01)


def test_a_column_without_questions_is_left_out() -> None:
    names = [one.name for one in by_column([answered("NAT NO G1-6", True)])]
    assert names == ["NAT", "NO", "G1-6", "average"]


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


def encoded(encoder: Encoder, asked: Example) -> EncodedQuestion:
    prompt, options = encoder.encode_options(asked)
    return EncodedQuestion(prompt.input_ids, tuple(options), prompt.modality)


def test_the_likeliest_option_is_taken(chat_llama, encoder, examples, score_choices) -> None:
    result = score_choices(chat_llama, encoder, examples)
    for (item, one), asked in zip(result.answered, examples, strict=True):
        alone = score_options(chat_llama, [encoded(encoder, asked)])[0]
        assert one.scores == pytest.approx(alone, abs=1e-9)
        assert one.choice == int(np.argmax(alone))
        assert (item.id, one.parsed, one.text) == (asked.id, asked.choices[one.choice], None)
    right = sum(one.choice == item.example.answer_index for item, one in result.answered)
    assert result.measures[-1].value == pytest.approx(100 * right / 3)


def test_any_batch_gives_the_same_scores(chat_llama, encoder, examples, score_choices) -> None:
    alone = score_choices(chat_llama, encoder, examples, token_budget=1)
    together = score_choices(chat_llama, encoder, examples, token_budget=100_000)
    for (_, a), (_, b) in zip(alone.answered, together.answered, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-9)


@pytest.mark.parametrize(("budget", "passes"), [(1, 3), (100_000, 1)])
def test_a_forward_pass_holds_what_the_budget_allows(
    chat_llama, encoder, examples, score_choices, budget: int, passes: int
) -> None:
    seen = []
    hook = chat_llama.register_forward_hook(lambda *_: seen.append(1))
    score_choices(chat_llama, encoder, examples, token_budget=budget)
    hook.remove()
    assert len(seen) == passes


def test_the_files_say_what_was_found(chat_llama, encoder, examples, score_choices) -> None:
    result = score_choices(chat_llama, encoder, examples)
    names = sorted(path.name for path in result.file.parent.glob("[!.]*"))
    assert names == ["scienceqa.json", "scienceqa.predictions.jsonl"]
    written = json.loads(result.file.read_text())
    assert (written["method"], written["blind"]) == ("likelihood", False)
    assert written["main"] == "average"
    assert written["measures"][-1]["count"] == 3
    lines = result.file.with_name(names[1]).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == ["a", "b", "c"]
    assert records[2]["options"] == ["north", "south", "east", "west"]
    assert records[2]["question"].startswith("Question: Which?")
    assert records[2]["columns"] == ["SOC", "TXT", "G1-6", "average"]
    assert records[2]["tags"] == {"subject": SOCIAL, "grade": "grade5", "hint": "yes"}


def prompts_seen(score_choices, model, encoder, examples, method: str) -> list[list[int]]:
    """Every id that reaches the model."""
    seen: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    score_choices(model, encoder, examples, method=method, max_new_tokens=3)
    hook.remove()
    return seen


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_prompts_never_see_the_gold_answer(
    chat_llama, encoder, examples, score_choices, method: str
) -> None:
    relabelled = []
    for one in examples:
        answer = (one.answer_index + 1) % len(one.choices)
        turns = (*one.messages[:-1], Message("assistant", (one.choices[answer],)))
        relabelled.append(replace(one, answer_index=answer, messages=turns))
    given = prompts_seen(score_choices, chat_llama, encoder, examples, method)
    assert given == prompts_seen(score_choices, chat_llama, encoder, relabelled, method)
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


def test_what_cannot_be_read_is_counted_apart(chat_llama, encoder, examples, score_choices) -> None:
    write(chat_llama, encoder, "The answer is C.")
    result = score_choices(chat_llama, encoder, examples, method="generate")
    said = [one for _, one in result.answered]
    assert [one.text for one in said] == ["The answer is C."] * 3
    assert [one.parsed for one in said] == [None, "a very long one", "east"]
    measures = {one.name: one for one in result.measures}
    average = measures["average"]
    assert (average.value, average.unparsed, average.count) == (pytest.approx(100 / 3), 1, 3)
    assert measures["NAT"].unparsed == 1


def test_blind_leaves_the_image_out_but_not_its_column(chat_llama, encoder, score_choices) -> None:
    with_image, without = example(image=True), example()
    result = score_choices(chat_llama, encoder, [with_image, without], blind=True)
    (_, seen), (_, plain) = result.answered
    assert seen.scores == pytest.approx(plain.scores, abs=1e-9)
    assert {one.name: one.count for one in result.measures}["IMG"] == 1


def test_the_models_mode_is_restored(chat_llama, encoder, examples, score_choices) -> None:
    chat_llama.train()
    chat_llama.lm_head.eval()
    modes: list[bool] = []
    hook = chat_llama.register_forward_hook(lambda module, *_: modes.append(module.training))
    score_choices(chat_llama, encoder, examples)
    hook.remove()
    assert modes
    assert not any(modes)
    assert chat_llama.training
    assert chat_llama.model.training
    assert not chat_llama.lm_head.training


def test_what_cannot_be_scored_is_refused(chat_llama, encoder, score_choices) -> None:
    with pytest.raises(DataError, match="there are no items"):
        score_choices(chat_llama, encoder, [])
    with pytest.raises(DataError, match="record '8'"):
        score_choices(chat_llama, encoder, [Example((Message("user", ("Hi",)),), id="8")])


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)])
def test_order_does_not_matter_where_the_prompt_does_not_list_options(
    chat_llama, encoder, score_choices, order: tuple[int, ...]
) -> None:
    texts, asked = ("up", "down", "left", "to the right"), Message("user", ("Which way?",))
    turned = tuple(texts[index] for index in order)
    plain = Example((asked,), choices=texts, answer_index=3)
    other = Example((asked,), choices=turned, answer_index=turned.index(texts[3]))
    (_, first), (_, second) = score_choices(chat_llama, encoder, [plain, other]).answered
    assert second.scores == pytest.approx([first.scores[index] for index in order], abs=1e-9)
    assert first.parsed == second.parsed


def test_a_score_is_the_training_loss_of_that_answer(
    chat_llama, encoder, examples, score_choices
) -> None:
    """transformers' own loss on the encoded example, summed over its trained tokens."""
    result = score_choices(chat_llama, encoder, examples)
    for (_, one), asked in zip(result.answered, examples, strict=True):
        encoded = encoder.encode(asked)
        ids, labels = (
            torch.from_numpy(x).long()[None] for x in (encoded.input_ids, encoded.labels)
        )
        with torch.no_grad():
            loss = float(chat_llama(input_ids=ids, labels=labels).loss)
        loss *= (~encoded.prompt_mask).sum()
        assert one.scores[asked.answer_index] == pytest.approx(-loss, rel=1e-6)  # float32 loss


def test_scores_need_no_gradient(chat_llama, encoder, examples, score_choices) -> None:
    score_choices(chat_llama, encoder, examples)
    assert all(parameter.grad is None for parameter in chat_llama.parameters())
    assert torch.is_grad_enabled()
