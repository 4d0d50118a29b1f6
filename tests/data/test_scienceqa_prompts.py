r"""ScienceQA's prompt formats, as published and as they say.

The published texts were written by hand and compared with ScienceQA's (2cbf831) and LaVIN's
(dd0a1bf) `base_prompt.py`; `tests/reference_code/prompts.py` repeats that on random problems.
"""

from pathlib import Path

import pytest

from varifocal.data.formats.base import ParseOptions
from varifocal.data.formats.scienceqa import parse_scienceqa
from varifocal.data.readers.base import Record
from varifocal.data.source import open_source
from varifocal.errors import RecipeError
from varifocal.recipe import FileSection, load_recipe
from varifocal.recipe.prompt_formats import INPUTS, OUTPUTS

ROW = {
    "question": "Which is a  metal?",
    "choices": ["iron", "wood"],
    "answer": 0,
    "hint": "",
    "caption": "A bar.",
    "lecture": "Metals shine.\nThey bend.",
    "solution": "Iron shines.",
}
QUESTION, NO_CONTEXT = "Question: Which is a metal?\n", "Context: N/A\n"
OPTIONS = "Options: (A) iron (B) wood"
LECTURE, SOLUTION = r"Metals shine.\nThey bend.", "Iron shines."

PROMPTS = {
    "CQM": f"{NO_CONTEXT}{QUESTION}{OPTIONS}",
    "QCM": f"{QUESTION}{NO_CONTEXT}{OPTIONS}",
    "QCML": f"{QUESTION}{NO_CONTEXT}{OPTIONS}\nBECAUSE: {LECTURE}",
    "QCME": f"{QUESTION}{NO_CONTEXT}{OPTIONS}\nBECAUSE: {SOLUTION}",
    "QCMLE": f"{QUESTION}{NO_CONTEXT}{OPTIONS}\nBECAUSE: {LECTURE} {SOLUTION}",
    "QCLM": f"{QUESTION}{NO_CONTEXT}BECAUSE: {LECTURE}\n{OPTIONS}",
    "QCEM": f"{QUESTION}{NO_CONTEXT}BECAUSE: {SOLUTION}\n{OPTIONS}",
    "QCLEM": f"{QUESTION}{NO_CONTEXT}BECAUSE: {LECTURE} {SOLUTION}\n{OPTIONS}",
}
ANSWERS = {
    "A": "The answer is A.",
    "AL": f"The answer is A. BECAUSE: {SOLUTION}",  # AL and AE swapped, as published
    "AE": f"The answer is A. BECAUSE: {LECTURE}",
    "ALE": f"The answer is A. BECAUSE: {LECTURE} {SOLUTION}",
    "AEL": f"The answer is A. BECAUSE: {SOLUTION} {LECTURE}",
    "LA": f"{LECTURE} The answer is A.",
    "EA": f"{SOLUTION} The answer is A.",
    "LEA": f"{LECTURE} {SOLUTION} The answer is A.",
    "ELA": f"{SOLUTION} {LECTURE} The answer is A.",
}


def parse(prompt_format, text="published", answer_as="letter", use_captions=False, **changes):
    asked = ParseOptions(
        source="problems.json",
        format="scienceqa",
        image_folder=Path(),
        answer_as=answer_as,
        prompt_format=prompt_format,
        prompt_text=text,
        use_captions=use_captions,
    )
    example = parse_scienceqa(Record("problems.json", "record '1'", ROW | changes), asked)
    return example.messages[0].text, example.messages[1].text, example.options


def test_every_format_has_its_text():
    assert (tuple(PROMPTS), tuple(ANSWERS)) == (INPUTS, OUTPUTS)


@pytest.mark.parametrize("letters", INPUTS)
def test_published_prompts(letters):
    assert parse(f"{letters}-A")[0] == PROMPTS[letters]


@pytest.mark.parametrize("letters", OUTPUTS)
def test_published_answers(letters):
    _, answer, options = parse(f"QCM-{letters}")
    assert answer == ANSWERS[letters]
    because = " BECAUSE:" if len(letters) > 1 and letters.startswith("A") else ""
    assert options == (f"The answer is A.{because}", f"The answer is B.{because}")


@pytest.mark.parametrize(
    ("hint", "use_captions", "context"),
    [("", True, "A bar."), ("See.", True, "See. A bar."), ("See.", False, "See.")],
)
@pytest.mark.parametrize("text", ["plain", "published"])
def test_contexts_and_captions(text, hint, use_captions, context):
    prompt = parse("QCM-A", text, use_captions=use_captions, hint=hint)[0]
    assert prompt.splitlines()[1] == f"Context: {context}"


def test_published_texts_have_empty_parts_and_blanks_as_the_code_leaves_them():
    prompt, answer, _ = parse("QCML-ALE", lecture="", solution="", question=" Which?\n")
    assert prompt == f"Question: Which?\n\nContext: N/A\n{OPTIONS}\nBECAUSE: "
    assert answer == "The answer is A. BECAUSE:"


@pytest.mark.parametrize(
    ("prompt_format", "answer_as", "prompt", "answer"),
    [
        ("QCM-AL", "letter", "", "The answer is A. BECAUSE: Metals shine.\nThey bend."),
        ("QCM-AE", "letter", "", "The answer is A. BECAUSE: Iron shines."),
        ("QCM-EA", "text", "", "Iron shines.\niron"),
        ("QCEM-A", "text", "BECAUSE: Iron shines.\n", "iron"),
    ],
)
def test_plain_texts_say_what_the_letters_say(prompt_format, answer_as, prompt, answer):
    found = parse(prompt_format, "plain", answer_as)
    assert found[:2] == (f"Question: Which is a  metal?\n{prompt}{OPTIONS}", answer)


def test_plain_texts_leave_out_what_is_not_there():
    found = parse("QCML-LEA", "plain", lecture="", solution="")
    assert found[:2] == (f"Question: Which is a  metal?\n{OPTIONS}", "The answer is A.")


def page(score="options", **source):
    source = {"path": "p", "format": "scienceqa", **source}
    return {
        "model": {"language_model": "lm"},
        "data": {"evaluate": [source]},
        "evaluation": {"score": score},
    }


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            page(prompt_format="QMC-A"),
            "[0].prompt_format: 'QMC-A' is not INPUT-OUTPUT",
        ),
        (page(prompt_format="QMC-A"), "did you mean 'QCM-A'?"),
        (
            page(prompt_text="published"),
            "data.evaluate[0].answer_as: prompt_text: published names choices by letter",
        ),
        (
            page(prompt_text="published", answer_as="letter", instructions="varied"),
            "data.evaluate[0].instructions: would replace prompt_text: published; give one",
        ),
        (
            page(use_captions=True, instructions="varied"),
            "data.evaluate[0].instructions: would replace use_captions and other prompts than QCM",
        ),
        (
            page(prompt_format="QCML-A", instructions="varied"),
            "data.evaluate[0].instructions: would replace use_captions and other prompts than QCM",
        ),
        (
            page(prompt_format="QCM-LEA"),
            "evaluation.score: QCM-LEA gives its reasons before the answer, which options are "
            "scored without; set it to generate",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(wrong, sentence):
    with pytest.raises(RecipeError) as caught:
        load_recipe(wrong, check_paths=False)
    assert sentence in str(caught.value)
    load_recipe(page("generate", prompt_format="QCM-LEA"), check_paths=False)


def test_a_source_without_the_new_keys_has_the_identity_that_it_had(scienceqa):
    """Encoded rows and runs of earlier versions are found by it."""
    identity = open_source(FileSection(path=str(scienceqa)), 0)._parser.identity
    assert identity == (
        '{"answer_as": "text", "answer_is": "auto", "columns": null, "field": null, "format": '
        '"scienceqa", "image_folder": null, "instructions": "plain", "prompt_format": "QCM-A", '
        '"seed": null, "skills": null, "split": null}'
    )
    captions = FileSection(path=str(scienceqa), use_captions=True)
    assert open_source(captions, 0)._parser.identity != identity
