"""The command line answers quickly, and tells every mistake in a sentence without a traceback."""

import gc
import subprocess
import sys
from types import SimpleNamespace

import PIL.Image
import pytest
import typer.main

from varifocal.cli import options
from varifocal.cli.commands import app
from varifocal.cli.interrupted import how_to_go_on
from varifocal.cli.tables import stage_bars
from varifocal.errors import DataError, Stopped
from varifocal.serving.request import Sampling

VERBS = (
    "init",
    "demo",
    "train",
    "eval",
    "benchmark",
    "retention",
    "ask",
    "chat",
    "plan",
    "data check",
    "data show",
    "data make sciencebook",
)


@pytest.fixture
def image(tmp_path):
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


# Help


def test_help_answers_without_torch():
    code = (
        "import sys\nfrom varifocal.cli import main\nsys.argv = ['varifocal', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb.split()[0] in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(run, verb):
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert f"Example: varifocal {verb}" in " ".join(out.split())


def test_version(run):
    from importlib.metadata import version

    assert run("--version") == (0, f"{version('varifocal')}\n", "")


def test_the_list_of_recipes_fits_a_terminal(run):
    _, out, _ = run("recipes")
    assert max(map(len, out.splitlines())) <= 80


def test_the_verbs_stand_in_groups_in_the_order_of_the_work(run):
    _, out, _ = run("--help")
    verbs = typer.main.get_command(app).commands
    words = [line.split()[1] for line in out.splitlines() if line[:2] in ("╭─", "│ ")]
    groups = ("Prepare", "Train", "Measure", "Use", "Study", "Disk")
    assert [word for word in words if word in (*groups, *verbs)] == [
        *("Prepare", "init", "recipes", "data", "plan"),
        *("Train", "train", "launch", "watch", "sweep", "demo"),
        *("Measure", "eval", "benchmark", "retention", "compare", "report"),
        *("Use", "ask", "chat", "serve", "export", "import"),
        *("Study", "analyze", "Disk", "cache"),
    ]
    assert set(verbs) <= set(words)


@pytest.mark.parametrize("group", [(), ("data",), ("data", "make"), ("analyze",), ("import",)])
def test_a_group_without_a_verb_is_its_help_and_no_mistake(run, group):
    code, out, err = run(*group)
    assert (code, err) == (0, "")
    assert f"Usage: {' '.join(('varifocal', *group))}" in out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("varifocal tra", "train"),
        ("varifocal train nlv", "nlvr"),
        ("varifocal ask --see", "--seed"),
    ],
)
def test_the_shell_completes_verbs_recipes_and_options(run, monkeypatch, typed, completed):
    monkeypatch.setenv("_VARIFOCAL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    code, out, _ = run()
    assert (code, out.split()) == (0, [completed])


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pln"], "No such command 'pln'. Did you mean 'plan'? (see: varifocal --help)"),
        (
            ["demo", "--quik"],
            "No such option: --quik; did you mean '--quick' (see: varifocal demo --help)",
        ),
        (["train"], "Missing argument 'RECIPE' (see: varifocal train --help)"),
        (["train", "demoo"], "no recipe 'demoo'; did you mean 'demo'?"),
        (
            ["plan", "nlvr", "--set", "tuner.botleneck_dim=4"],
            "tuner.botleneck_dim: unknown key; did you mean 'bottleneck_dim'?",
        ),
        (
            ["train", "nlvr", "--set", "data.root=/nowhere"],
            "data.train[0].path: no file '/nowhere/train.jsonl'; there is no folder '/nowhere'",
        ),
        (["ask", "/nowhere", "Why?"], "/nowhere is no run directory"),
        (["ask", "/nowhere", "Why?", "--image", "/no.png"], "image '/no.png' does not exist"),
        (["eval", "/nowhere"], "/nowhere is no run directory"),
        (
            ["eval", "/nowhere", "--score", "luck"],
            "Invalid value for '--score'",
        ),
        (
            ["data", "make", "sciencebook", "/nowhere/x", "--skills", "magnet"],
            "skills: no skill 'magnet'; did you mean 'magnets'?",
        ),
        (["data", "make", "sciencebook", "x", "--train", "-1"], "Invalid value for '--train'"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(run, arguments, sentence):
    code, out, err = run(*arguments)
    assert code == 2
    assert err.startswith(f"error: {sentence}")
    assert "Traceback" not in out + err


def test_every_mistake_in_a_recipe_has_its_line(run):
    code, _, err = run("plan", "nlvr", "--set", "sead=1", "--set", "tuner.scale=big")
    assert code == 2
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "error"]


def test_a_wrong_version_is_said_before_the_slow_import(run, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.57.1")
    code, _, err = run("plan", "nlvr")
    assert code == 2
    assert err.startswith("error: peft 4.57.1 is installed; Varifocal needs peft>=0.21,<0.22")


def test_the_collector_works_again_after_the_imports(monkeypatch):
    states = []
    monkeypatch.setattr("gc.freeze", lambda: states.append(gc.isenabled()))
    options._import_libraries()
    assert (states, gc.isenabled()) == ([False], True)
    monkeypatch.setattr(options.importlib, "import_module", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        options._import_libraries()
    assert gc.isenabled()


# Stopping


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Let `train` do what a test says; returns the recipe's arguments."""
    import varifocal.training.train as room

    def set_up(error):
        def train(recipe, root, **options):
            raise error

        monkeypatch.setattr(room, "run_training", train)

    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "dev.jsonl").write_text("")
    set_up.arguments = ["train", "nlvr", "--set", f"data.root={tmp_path}"]
    return set_up


def test_ctrl_c_says_how_to_go_on(run, training):
    training(KeyboardInterrupt())
    code, _, err = run(*training.arguments)
    assert code == 130
    assert err == f"stopped; to go on: varifocal {' '.join(training.arguments)} --resume\n"


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("--suite=nlvr", "'eval --suite' is a verb of its own: varifocal benchmark RUN_OR_MODEL"),
        ("--retention", "'eval --retention' is a verb of its own: varifocal retention RUN"),
    ],
)
def test_what_eval_did_before_is_answered_with_the_verb_that_does_it(run, option, command):
    code, _, err = run("eval", "runs/a", option)
    assert code == 2
    assert err.startswith(f"error: {command}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("train nlvr --resume", "train nlvr --resume"),
        ("launch nlvr --num-processes 2", "launch nlvr --num-processes 2 --resume"),
        ("demo --quick", "demo --quick"),
        ("sweep sweeps/a.yaml", "sweep sweeps/a.yaml"),
        ("benchmark runs/a nlvr", "benchmark runs/a nlvr"),
        ("eval runs/a", "eval runs/a"),
        ("plan demo", None),
        ("", None),
    ],
)
def test_what_goes_on_is_a_command_that_exists(typed, told):
    words = how_to_go_on(typed.split())
    if told is None:
        assert words == "stopped"
        return
    assert words.endswith(f"to go on: varifocal {told}")
    command, name, *rest = typer.main.get_command(app), *told.split()
    assert command.commands[name].make_context(name, rest).params


def test_a_saved_stop_keeps_its_own_words(run, training):
    training(Stopped("stopped after step 3 of 9; it is saved"))
    assert run(*training.arguments) == (130, "", "stopped after step 3 of 9; it is saved\n")


# Data and progress


def test_data_make_sciencebook_writes_and_tells(run, tmp_path):
    code, out, err = run(
        *("data", "make", "sciencebook", tmp_path / "book"),
        *("--train", 4, "--val", 0, "--test", 2, "--seed", 1, "--skills", "magnets, units"),
    )
    assert code == 0
    assert out.startswith(f"{tmp_path / 'book'}: 6 questions of 2 skills, ")
    assert err == "draw 6/6\n"
    assert (tmp_path / "book" / "problems.json").is_file()


def test_a_log_file_gets_a_line_for_every_logged_step_and_the_time_left(capsys, monkeypatch):
    clock = iter(range(0, 600, 60))
    monkeypatch.setattr("varifocal.cli.tables.time.monotonic", lambda: next(clock))
    with stage_bars() as progress:
        progress("train", 0, 4)
        progress("train", 1, 4)
        progress("train", 2, 4, "loss 2.000, 50 tokens/s")
        progress("train", 3, 4)
        progress("train", 4, 4, "loss 2.000, 50 tokens/s")
        progress("train", 0, 4)  # the next run of a sweep
        progress("train", 1, 4, "loss 3.000, 50 tokens/s")
    assert capsys.readouterr().err.splitlines() == [
        "train 0/4",
        "train 2/4 loss 2.000, 50 tokens/s, 2 min left",
        "train 4/4 loss 2.000, 50 tokens/s",
        "train 0/4",
        "train 1/4 loss 3.000, 50 tokens/s, 3 min left",
    ]


def test_a_log_file_hears_of_a_long_stage_twice_a_minute(capsys, monkeypatch):
    clock = iter(range(0, 6000, 10))
    monkeypatch.setattr("varifocal.cli.tables.time.monotonic", lambda: next(clock))
    with stage_bars() as progress:
        for done in range(9):
            progress("encode", done, 8, "rows")
    assert capsys.readouterr().err.splitlines() == [
        "encode 0/8 rows",
        "encode 3/8 rows, 50 s left",
        "encode 6/8 rows, 20 s left",
        "encode 8/8 rows",
    ]


# Talking


class Parrot:
    """An engine that says how many turns and images it was shown."""

    def __init__(self, model, encoder, load_images):
        self.load_images = load_images

    def stream(self, messages, sampling, *, adapter=True):
        shown = [part for part in messages[-1].content if not isinstance(part, str)]
        if "bad" in messages[-1].text:
            raise DataError("that cannot be encoded")
        yield f"{len(messages)} turns, "
        yield f"{len(shown)} images, at most {sampling.max_new_tokens}"


@pytest.fixture
def parrot(monkeypatch, tmp_path):
    import varifocal.cli.chat as room

    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "runs" / "x" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter.parent / "recipe.yaml").write_text("model: {language_model: smollm2-135m-instruct}")
    parts = SimpleNamespace(model=None, encoder=None, load_images=lambda images: {})
    monkeypatch.setattr(room, "open_run", lambda root, strength: (None, parts))
    monkeypatch.setattr(room, "Engine", Parrot)
    return parts


def test_ask_shows_its_images_and_prints_the_answer(run, parrot, image):
    arguments = ("ask", "runs/x", "What?", "--image", image, "--max-new-tokens", 7)
    assert run(*arguments) == (0, "1 turns, 1 images, at most 7\n", "")


@pytest.mark.parametrize("verb", [("ask", "runs/x", "What?"), ("chat", "runs/x")])
def test_ask_and_chat_take_the_sampling_options_of_the_api(run, parrot, monkeypatch, verb):
    typed, asked = iter(["What?", "/quit"]), []
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    answer = Parrot.stream
    monkeypatch.setattr(
        Parrot, "stream", lambda *given, **how: asked.append(given[2]) or answer(*given, **how)
    )
    options = "--temperature 0.5 --top-p 0.9 --seed 7 --max-new-tokens 3 --stop END --stop Q:"
    assert run(*verb, *options.split())[0] == 0
    assert asked == [Sampling(3, 0.5, 0.9, 7, ("END", "Q:"))]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--top-p 1.5 --temperature 1", "--top-p 1.5: give a number above 0 and at most 1"),
        ("--top-p 0 --temperature 1", "--top-p 0: give a number above 0 and at most 1"),
        ("--top-p 0.5", "--top-p does nothing without a --temperature above 0; add one"),
        ("--seed 3", "--seed does nothing without a --temperature above 0; add one"),
        ("--stop=", "--stop: give the text before which an answer ends, not an empty one"),
    ],
)
def test_a_sampling_option_that_cannot_be_is_refused(run, options, sentence):
    assert run("ask", "/nowhere", "Why?", *options.split()) == (2, "", f"error: {sentence}\n")


def test_chat_lists_its_commands(run, parrot, monkeypatch):
    typed = iter(["/help", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code, out, _ = run("chat", "runs/x")
    assert code == 0
    first, *listed = out.splitlines()
    assert first == "/help lists the commands."
    assert [line.split()[0] for line in listed] == ["/image", "/base", "/new", "/help", "/quit"]


def test_a_model_without_eyes_refuses_a_image(run, parrot, image):
    parrot.load_images = None
    code, _, err = run("ask", "runs/x", "What?", "--image", image)
    assert (code, err) == (
        2,
        "error: this run's model has no vision tower; it cannot see an image\n",
    )


def test_chat_remembers_turns_and_outlives_mistakes(run, parrot, image, monkeypatch):
    typed = iter(
        [
            "Hello",
            "",
            "/imge x",
            "/image /no.png",
            "this is bad",
            f"/image {image}",
            "What?",
            "And?",
            "/new",
            "Hello",
            "/quit",
            "not reached",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code, out, err = run("chat", "runs/x")
    assert code == 0
    assert [line.removesuffix(", at most 256") for line in out.splitlines() if "turns" in line] == [
        "1 turns, 0 images",
        "3 turns, 1 images",
        "5 turns, 0 images",
        "1 turns, 0 images",
    ]
    assert err.splitlines() == [
        "error: no command /imge; did you mean '/image'?",
        "error: image '/no.png' does not exist",
        "error: that cannot be encoded",
    ]
    assert next(typed) == "not reached"


def test_chat_ends_with_the_input(run, parrot, monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert run("chat", "runs/x")[0] == 0
