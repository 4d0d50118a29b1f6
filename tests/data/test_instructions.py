"""Wordings: enough of them, all different, each with its fields; drawn by seed and id alone."""

import doctest
import string
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varifocal.data import mixture
from varifocal.data.example import Example, Image, Message, Question
from varifocal.data.formats import instructions
from varifocal.data.formats.instructions import CONTEXT, LISTINGS, WORDINGS, kind_of, vary
from varifocal.data.formats.questions import question_text

FIELDS = {
    "multiple_choice": {"question", "options"},
    "short_answer": {"question"},
    "yes_no": {"question", "answers"},
    "reasoning": {"question"},
    "explanation": {"question"},
}
IMAGE = Image(data=b"x")


def ask(answer, *, id="1", text="Which is a metal?", context="", image=False, **rest):
    question = Question(text, context)
    prompt = question_text(text, context, rest.get("choices", ()))
    content = (IMAGE, prompt) if image else (prompt,)
    turns = (Message("user", content), Message("assistant", (answer,)))
    return Example(turns, id=id, question=question, **rest)


METALS = {"choices": ("iron", "wood"), "answer_index": 0}
EXAMPLES = {
    "multiple_choice": ask("iron", **METALS),
    "short_answer": ask("iron"),
    "yes_no": ask("true", text="Iron shines", choices=("true", "false"), answer_index=0),
    "reasoning": ask("Metals shine. Iron shines. So the answer is iron."),
    "explanation": ask(
        "iron\nBECAUSE: it shines", **METALS, options=("iron\nBECAUSE:", "wood\nBECAUSE:")
    ),
}


def test_docstrings_show_what_happens():
    for module in (instructions, mixture):
        assert doctest.testmod(module).failed == 0


def fields_of(template):
    return Counter(name for _, name, _, _ in string.Formatter().parse(template) if name)


@pytest.mark.parametrize("kind", WORDINGS)
def test_there_are_twenty_wordings_of_each_kind_and_no_two_are_alike(kind):
    bare = {
        " ".join("".join(c if c.isalpha() else " " for c in wording.casefold()).split())
        for wording in WORDINGS[kind]
    }
    assert len(bare) == len(WORDINGS[kind]) >= 20


@pytest.mark.parametrize("kind", WORDINGS)
def test_every_wording_has_each_of_its_fields_once(kind):
    for wording in WORDINGS[kind]:
        assert fields_of(wording) == dict.fromkeys(FIELDS[kind], 1), wording
        assert "\n\n\n" not in wording
        assert wording == wording.strip()


def test_contexts_and_listings_have_their_fields():
    assert all(fields_of(wording) == {"context": 1} for wording in CONTEXT)
    assert all(fields_of(each) == {"letter": 1, "choice": 1} for each, _ in LISTINGS)
    assert "\n" not in LISTINGS[0][1]


def test_choices_are_never_asked_for_by_letter():
    """Some sources answer with the letter, some with the text; one wording must suit both."""
    for wording in WORDINGS["multiple_choice"]:
        assert "letter" not in wording.casefold()


@pytest.mark.parametrize("kind", WORDINGS)
def test_every_wording_is_drawn_and_holds_what_is_asked(kind):
    example = EXAMPLES[kind]
    assert kind_of(example) == kind
    prompts = {vary(replace(example, id=str(n)), seed=0).messages[0].text for n in range(600)}
    for prompt in prompts:
        assert example.question.text in prompt
        assert all(choice in prompt for choice in example.choices)
        assert "{" not in prompt
    for wording in WORDINGS[kind]:
        start = wording.partition("{")[0]
        assert any(prompt.startswith(start) for prompt in prompts), wording
    assert len(prompts) >= len(WORDINGS[kind])


def test_only_the_question_is_worded_anew():
    example = replace(ask("iron", image=True, context="Metals shine.", **METALS), task="t")
    worded = vary(example, seed=3)
    assert worded.images == (IMAGE,)
    assert worded.messages[0].content[0] is IMAGE
    assert worded.messages[1:] == example.messages[1:]
    assert replace(worded, messages=example.messages) == example
    assert "Metals shine." in worded.messages[0].text
    assert worded.messages[0].text != example.messages[0].text


def test_braces_in_a_question_are_text():
    example = ask("iron", text="Is {x} a {question}?", context="{context}", **METALS)
    assert "Is {x} a {question}?" in vary(example, 0).messages[0].text


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8, unique=True), st.integers(0, 5))
def test_a_draw_depends_on_seed_and_id_and_nothing_else(ids, seed):
    examples = [replace(EXAMPLES["multiple_choice"], id=str(number)) for number in ids]
    forwards = [vary(example, seed) for example in examples]
    backwards = [vary(example, seed) for example in reversed(examples)][::-1]
    assert forwards == backwards
    moved = [vary(replace(example, source="elsewhere"), seed) for example in examples]
    assert [one.messages for one in moved] == [one.messages for one in forwards]


def test_seeds_word_differently():
    worded = {vary(EXAMPLES["multiple_choice"], seed).messages[0].text for seed in range(40)}
    assert len(worded) > 15


def test_another_process_draws_the_same():
    code = (
        "from varifocal.data.example import *\n"
        "from varifocal.data.formats.instructions import vary\n"
        "turns = (Message('user', ('Why?',)), Message('assistant', ('yes',)))\n"
        "print([vary(Example(turns, id=str(n), question=Question('Why?')), 7).messages[0].text"
        " for n in range(9)])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [vary(ask("yes", text="Why?", id=str(n)), 7).messages[0].text for n in range(9)]
    assert printed == {f"{here}\n"}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes.", "yes_no"),
        ("FALSE", "yes_no"),
        ("a red box", "short_answer"),
        ("The answer is 7.", "short_answer"),
        ("There are 3 and 4 boxes.\nThe direct answer is: 7", "reasoning"),
        ("word " * 13, None),
    ],
)
def test_kinds_of_questions_without_choices(answer, kind):
    assert kind_of(ask(answer)) == kind


@pytest.mark.parametrize(
    ("choices", "kind"),
    [
        (("No", "Yes"), "yes_no"),
        (("true", "false"), "yes_no"),
        (("yes", "no", "maybe"), "multiple_choice"),
        (("yes", "false"), "multiple_choice"),
    ],
)
def test_the_wording_of_a_choice_is_blind_to_the_right_one(choices, kind):
    both = [ask(choices[n], choices=choices, answer_index=n) for n in (0, 1)]
    assert [kind_of(example) for example in both] == [kind, kind]
    assert len({vary(example, 5).messages[0].text for example in both}) == 1
    if kind == "yes_no":
        assert f"{choices[0]} or {choices[1]}" in vary(both[0], 5).messages[0].text


def test_letters_that_answer_are_listed():
    options = ("The answer is A.", "The answer is B.")
    example = ask("The answer is A.", choices=("yes", "no"), answer_index=0, options=options)
    assert kind_of(example) == "multiple_choice"
    for seed in range(30):
        assert "A" in vary(example, seed).messages[0].text


def test_a_reasoned_choice_lists_its_choices():
    example = ask("Metals shine, so it is iron.", **METALS)
    assert kind_of(example) == "reasoning"
    assert "(A) iron" in vary(example, 1).messages[0].text.replace("A. ", "(A) ")


def test_what_no_wording_suits_is_left_as_it_is():
    plain = replace(EXAMPLES["short_answer"], question=None)
    long = ask("word " * 40)
    broken_up = ask("iron")
    pieces = (Message("user", ("a", IMAGE, "b")), broken_up.messages[1])
    for example in (plain, long, replace(broken_up, messages=pieces)):
        assert vary(example, 0) is example


def test_the_last_question_of_a_conversation_is_worded():
    first = (Message("user", ("Hello",)), Message("assistant", ("Hi",)))
    example = EXAMPLES["short_answer"]
    turns = replace(example, messages=first + example.messages)
    worded = vary(turns, 2)
    assert worded.messages[:2] == first
    assert worded.messages[2].text == vary(example, 2).messages[0].text
