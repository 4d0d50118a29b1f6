"""The commands that a verb prints for the user to run next work as they are printed."""

import io
import shlex
import sys

import pytest

from varifocal.cli.tables import print_demo
from varifocal.demo import ask_command
from varifocal.run import RunDirectory

UNTRAINED = ("--set", "training.max_steps=0")


def command_after(words, text):
    """The arguments of the one command that stands after some words."""
    (line,) = (line for line in text.splitlines() if words in line)
    program, *arguments = shlex.split(line.partition(words)[2])
    assert program == "varifocal"
    return arguments


@pytest.fixture
def trained(run, recipe_file, tmp_path):
    """Train into a folder whose name has a blank; return what was printed."""

    def trained(*options):
        code, out, _ = run("train", recipe_file, "--out", tmp_path / "my run", *UNTRAINED, *options)
        assert code == 0
        return out

    return trained


def test_a_run_with_questions_is_scored_next(trained, run, book, tmp_path):
    sources = f'data.evaluate=[{{path: "{book}", split: train, max_examples: 2}}]'
    arguments = command_after("next: ", trained("--set", sources))
    assert arguments == ["eval", str(tmp_path / "my run")]
    assert run(*arguments)[0] == 0


@pytest.mark.parametrize(("split_images", "blind"), [(True, ["--blind"]), (False, [])])
def test_a_model_without_eyes_is_scored_without_the_images(
    split_images, blind, trained, run, book, tmp_path
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is it?", "answer": "It."}\n')
    source = f'path: "{book}", split: train' if split_images else f'path: "{rows}"'
    text_only = [
        *("model.vision_tower=null", "model.connector=null"),
        "training.connector_learning_rate=null",
        f'data.train=[{{path: "{rows}"}}]',
        f"data.evaluate=[{{{source}, max_examples: 2}}]",
    ]
    told = trained(*[word for each in text_only for word in ("--set", each)])
    arguments = command_after("next: ", told)
    assert arguments == ["eval", str(tmp_path / "my run"), *blind]
    assert run(*arguments)[0] == 0


def test_a_run_without_questions_is_talked_to_next(trained, run, tmp_path, monkeypatch):
    arguments = command_after("next: ", trained())
    assert arguments == ["chat", str(tmp_path / "my run")]
    assert run("eval", tmp_path / "my run")[0] == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("/quit\n"))
    assert run(*arguments)[0] == 0


def test_sources_of_one_name_cannot_be_scored_so_the_run_is_talked_to(trained, book):
    source = f'{{path: "{book}", split: train}}'
    told = trained("--set", f"data.evaluate=[{source}, {source}]")
    assert command_after("next: ", told)[0] == "chat"


def test_a_demo_that_was_moved_is_asked_where_it_lies(capsys, tmp_path):
    scores = {"IMG": 50.0, "TXT": 50.0, "NO": 50.0, "average": 50.0}
    result = {
        **dict.fromkeys(("before_blind", "before", "after"), scores),
        "skills": {},
        "intervals": {"after": {"IMG": [1.0, 2.0]}},
        **{"trained_parameters": 1, "minutes": 1.0, "peak_memory_gib": 1.0, "quick": False},
        **{"question": "What's red?", "image": "book/it is.png"},
    }
    print_demo(result, tmp_path / "moved here")
    arguments = command_after("next: ", capsys.readouterr().out)
    image = tmp_path / "moved here" / "book" / "it is.png"
    assert arguments == ["ask", str(tmp_path / "moved here"), "What's red?", "--image", str(image)]
    assert ask_command(tmp_path, result).startswith("varifocal ask ")


def test_a_stopped_run_in_a_folder_with_a_blank_is_resumed_as_printed(tmp_path):
    run = RunDirectory(tmp_path / "my run")
    assert shlex.split(run.resume_command) == [
        *("varifocal", "train", str(run.recipe), "--out", str(run.root), "--resume")
    ]
