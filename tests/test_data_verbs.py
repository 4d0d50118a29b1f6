"""`varifocal data check` and `data show`: exit codes, what they print, what they refuse."""

import json

import pytest
from PIL import Image as Images
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny import byte_tokenizer, llama_config
from varifocal import prompts
from varifocal.cli.data_tables import bar
from varifocal.data.encoding.encoder import Encoder
from varifocal.models.vision import VisionTower
from varifocal.recipe import load_recipe
from varifocal.training.examples import load_training_data

IMAGE_TOKEN = "<|image|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", IMAGE_TOKEN]


def spell():
    """Make a tokenizer with one token a character."""
    words = [*SPECIAL, *map(chr, range(32, 127)), "\n", "?"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=[IMAGE_TOKEN],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path):
    """Encode with a tokenizer of letters, and keep what is encoded in a folder of the test."""

    def load(recipe):
        data = recipe.data
        eyes = {"image_token": IMAGE_TOKEN, "tokens_per_image": 3}
        return Encoder(spell(), **eyes, max_length=data.max_length, overflow=data.overflow)

    monkeypatch.setattr(prompts, "load_encoder", load)
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))


def talk(question, answer, **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **more}


GOOD = [
    talk("<image>What is it?", "It is red.", image="red.png"),
    talk("Is a pole a magnet?", "No [red]bold[/red]."),
]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A random language model on disk: one of a package would be unpacked first, for seconds."""
    directory = tmp_path_factory.mktemp("language")
    LlamaForCausalLM(llama_config(byte_tokenizer())).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def recipe(tmp_path, language):
    """Write records and a recipe that names them; returns the recipe's file."""
    Images.new("RGB", (8, 6), "red").save(tmp_path / "red.png")

    def make(records, **data):
        lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
        (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
        page = {
            "model": {"language_model": language},
            "data": {"train": [{"path": "train.jsonl"}], "max_length": 120, **data},
        }
        (tmp_path / "page.yaml").write_text(json.dumps(page))
        return tmp_path / "page.yaml"

    return make


# check


def test_usable_data_end_with_0_and_say_so(run, recipe):
    code, out, err = run("data", "check", recipe(GOOD))
    assert code == 0
    assert out.splitlines()[-1] == "usable: 2 of 2 records train"
    assert err == "train: train.jsonl 2/2\n"


def test_what_is_not_read_is_told_before_and_by_a_run(run, recipe, tmp_path):
    rows = [{**GOOD[1], "score": 5}, {**GOOD[1], "rejected": "Yes."}]
    told = "train.jsonl: as sharegpt, these columns are not read: score, rejected"
    page = recipe(rows)
    code, out, _ = run("data", "check", page, "--json", tmp_path / "found.json")
    assert (code, f"note: {told}" in out.splitlines()) == (0, True)
    assert json.loads((tmp_path / "found.json").read_text())["sources"][0]["notes"] == [told]
    data = load_recipe(page).data
    data = data.model_copy(
        update={
            "train": tuple(
                section.model_copy(update={"path": str(tmp_path / "train.jsonl")})
                for section in data.train
            )
        }
    )
    assert load_training_data(data, prompts.load_encoder(load_recipe(page))).notes == [told]


def test_unusable_data_end_with_1_and_the_mend(run, recipe):
    code, out, _ = run("data", "check", recipe([*GOOD, "{"]))
    assert code == 1
    last = out.splitlines()[-1]
    assert last.startswith("not usable: 1 record cannot be used and data.on_bad_record is fail")
    assert "train.jsonl: line 3 is not JSON" in last
    assert last.endswith("leave them out with data.on_bad_record: skip")


def test_an_override_decides(run, recipe):
    page = recipe([*GOOD, "{"])
    assert run("data", "check", page, "--set", "data.on_bad_record=skip")[0] == 0
    assert run("data", "check", page, "--set", "data.max_length=30")[0] == 1


def test_a_source_that_cannot_be_opened_is_a_mistake(run, recipe, tmp_path):
    page = recipe(GOOD)
    (tmp_path / "train.jsonl").write_text("")
    code, out, err = run("data", "check", page)
    assert (code, out) == (2, "")
    assert "train.jsonl' has no row" in err


def test_a_pipe_gets_plain_text(run, recipe):
    records = [*GOOD, GOOD[1], talk("Why? " * 60, "So."), talk("Silent?", "")]
    _, out, _ = run("data", "check", recipe(records, overflow="drop", on_bad_record="skip"))
    lines = [" ".join(line.split()) for line in out.splitlines()]
    row = next(line for line in lines if line.startswith("train train.jsonl 5 4"))
    assert row.split()[2:6] == ["5", "4", "3", "1"]
    assert row.endswith("%")
    assert "longer than max_length 1" in lines
    assert any(line.startswith("train 2 ") and "as record 1" in line for line in lines)
    assert any(
        line.startswith("limit: 1 example takes more than data.max_length 120") for line in lines
    )
    assert any(line.startswith("rows: ") and line.endswith("% full") for line in lines)
    assert not set("│─━█▏\x1b") & set(out)


def test_files_are_written_where_asked(run, recipe, tmp_path):
    code, out, _ = run(
        *("data", "check", recipe(GOOD)),
        *("--json", tmp_path / "out" / "found.json", "--plots", tmp_path / "plots"),
    )
    assert code == 0
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert (found["usable"], found["findings"]) == (True, [])
    assert found["sources"][0]["image_tokens"] == {"0": 1, "3": 1}
    for name in ("token_lengths.png", "image_tokens.png"):
        with Images.open(tmp_path / "plots" / name) as pil_image:
            assert pil_image.size[0] > 500
        assert str(tmp_path / "plots" / name) in out


def test_a_file_that_cannot_be_written_is_one_sentence(run, recipe, tmp_path):
    code, _, err = run("data", "check", recipe(GOOD), "--json", tmp_path / "red.png" / "found.json")
    assert code == 2
    assert "found.json cannot be written (file exists)" in err.splitlines()[-1]


def test_bars_grow_with_their_count():
    widths = [len(bar(count, 80, 10)) for count in range(81)]
    assert widths == sorted(widths)
    assert (widths[0], widths[1], widths[80]) == (0, 1, 10)
    assert bar(80, 80, 10) == "█" * 10


# show


def test_show_marks_what_trains_and_where_a_segment_ends(run, recipe):
    code, out, _ = run("data", "show", recipe(GOOD, row_length=160), "--index", 0)
    assert code == 0
    assert out.startswith("row 0 of 1: 2 samples, ")
    assert "[+No [red]bold[/red].</s>+]" in out
    assert "user↵\n⟨image \u00d73⟩What is it?</s>" in out
    borders = [line for line in out.splitlines() if line.startswith("--- segment")]
    assert len(borders) == 3
    assert any("record 0, task llava, image, positions 0-" in line for line in borders)
    assert borders[-1] == "--- segment 2: padding"


def test_control_characters_of_a_record_are_named(run, recipe, monkeypatch):
    from rich.console import Console

    from varifocal.cli.data_tables import _styled

    assert str(_styled(Console(), "prompt", "a\x1b[31mb\n")) == "a\\x1b[31mb↵\n"


def test_html_is_written_to_a_file(run, recipe, tmp_path):
    page = tmp_path / "out" / "row.html"
    code, out, _ = run("data", "show", recipe(GOOD), "--random", "--seed", 1, "--html", page)
    assert (code, out) == (0, f"{page}\n")
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--index", 9], "there is no row 9; the first epoch has 2, from 0 to 1"),
        (["--index", 1, "--random"], "--index and --random: give one of them"),
        (["--seed", 1], "--seed belongs to --random"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(run, recipe, arguments, sentence):
    code, out, err = run("data", "show", recipe(GOOD, packing=False), *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {sentence}"


def test_bad_data_stop_show_as_they_stop_a_run(run, recipe):
    code, _, err = run("data", "show", recipe([*GOOD, "{"]))
    assert code == 2
    assert "line 3 is not JSON" in err


# The encoder


@pytest.mark.parametrize(("name", "tokens"), [("demo", 20), ("scienceqa-text", 0)])
def test_an_encoder_takes_no_weights(monkeypatch, name, tokens):
    monkeypatch.undo()

    def refuse(*arguments, **options):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(VisionTower, "forward", refuse)
    page = load_recipe(name, check_paths=False)
    encoder = prompts.load_encoder(page)
    assert encoder.tokens_per_image == tokens
    assert (encoder.image_token is None) == (tokens == 0)
    assert (encoder.max_length, encoder.overflow) == (page.data.max_length, page.data.overflow)
