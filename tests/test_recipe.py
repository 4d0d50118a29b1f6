"""A recipe means what it says, survives a round trip, and every mistake in it is a sentence."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from varifocal.errors import RecipeError
from varifocal.recipe import (
    AlignmentSection,
    ClsPyramidSection,
    DataSection,
    EvaluationSection,
    FileSection,
    HubSection,
    LlavaMLPSection,
    LoraSection,
    MMASection,
    ModelSection,
    NoTunerSection,
    PatchMLPSection,
    Recipe,
    TrainingSection,
    load_recipe,
)
from varifocal.recipe.chat_templates import CHAT_TEMPLATES
from varifocal.recipe.processor import has_bfloat16, processor_has_bfloat16
from varifocal.recipe.prompt_formats import PROMPT_FORMATS
from varifocal.recipe.reading import SHIPPED
from varifocal.recipe.strict_yaml import parse_yaml, put, validate

TREE = Path(__file__).parents[1] / "recipes"
MODEL = {"language_model": "smollm2-135m-instruct"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "alpaca.json").write_text("[]")
    (tmp_path / "recipe.yaml").write_text(
        "model: {language_model: smollm2-135m-instruct}\n"
        "data:\n"
        "  train:\n"
        "    - path: alpaca.json\n"
        "    - {path: alpaca.json, epochs: 2}\n"
    )
    return tmp_path


def refusal(folder, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "recipe.yaml", overrides)
    return str(caught.value)


# What a page means


def test_defaults_are_filled_in(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.name == "recipe"
    assert recipe.tuner == MMASection(bottleneck_dim=8, router_temperature=10.0, dropout=0.1)
    assert recipe.model.connector is None
    assert [source.epochs for source in recipe.data.train] == [None, 2]


def test_a_vision_tower_brings_a_connector():
    recipe = validate(Recipe, {"model": {**MODEL, "vision_tower": "efficientnet-lite0"}})
    assert recipe.model.connector is not None
    assert recipe.model.connector.type == "patch_mlp"


@pytest.mark.parametrize(
    ("tuner", "section"),
    [
        ({}, MMASection),
        ({"type": "lora", "rank": 4}, LoraSection),
        ({"type": "none"}, NoTunerSection),
    ],
)
def test_tuner_is_chosen_by_type(tuner, section):
    assert type(validate(Recipe, {"model": MODEL, "tuner": tuner}).tuner) is section


def test_overrides_reach_every_place(folder):
    recipe = load_recipe(
        folder / "recipe.yaml",
        ["training.learning_rate=1e-3", "data.train[1].epochs=5", "data.train.0.max_examples=7"],
    )
    assert recipe.training.learning_rate == 1e-3
    assert [source.epochs for source in recipe.data.train] == [None, 5]
    assert recipe.data.train[0].max_examples == 7
    assert load_recipe(folder / "recipe.yaml", {"seed": 3}).seed == 3


def test_paths_start_at_the_recipe_or_at_root_wherever_they_are_written(folder, monkeypatch):
    (folder / "more").mkdir()
    (folder / "more" / "alpaca.json").write_text("[]")
    file = folder / "recipe.yaml"
    assert load_recipe(file).data.train[0].path == str(folder / "alpaca.json")
    monkeypatch.chdir(folder / "more")
    assert load_recipe(file).data.train[0].path == str(folder / "alpaca.json")
    rooted = load_recipe(file, ["data.root=more"])
    assert rooted.data.train[0].path == str(folder / "more" / "alpaca.json")
    given = load_recipe(file, ["data.train[0].path=more/alpaca.json"])
    assert given.data.train[0].path == str(folder / "more" / "alpaca.json")
    assert given.data.train[1].path == str(folder / "alpaca.json")
    below = load_recipe(file, ["data.root=more", "data.train[0].path=../alpaca.json"])
    assert below.data.train[0].path == str(folder / "alpaca.json")
    shipped = load_recipe("demo", ["data.root=../more"], check_paths=False)
    assert shipped.data.train[0].path == str(folder / "more" / "sciencebook")
    monkeypatch.setenv("HOME", str(folder))
    assert load_recipe(file, ["data.root=~/more"]).data.root == str(folder / "more")


def test_a_path_that_is_there_from_the_current_directory_is_named(folder, monkeypatch):
    (folder / "here").mkdir()
    (folder / "here" / "mine.json").write_text("[]")
    monkeypatch.chdir(folder / "here")
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "recipe.yaml", ["data.train[0].path=mine.json"])
    assert str(caught.value) == (
        f"data.train[0].path: no file '{folder / 'mine.json'}'; relative paths start at '{folder}' "
        f"here, and '{folder / 'here' / 'mine.json'}' is there: give the whole path"
    )
    (folder / "sciencebook").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match=f"relative paths start at '{folder / 'here'}' here"):
        load_recipe("demo", ["data.root=here", "data.train[0].path=sciencebook"])


def test_model_names_are_paths_only_where_there_is_a_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "models" / "mine").mkdir(parents=True)
    for name, expected in [
        ("models/mine", str(folder / "models" / "mine")),
        ("./elsewhere", str(folder / "elsewhere")),
        ("huggyllama/llama-7b", "huggyllama/llama-7b"),
    ]:
        recipe = load_recipe(folder / "recipe.yaml", {"model.language_model": name})
        assert recipe.model.language_model == expected


def test_a_loaded_recipe_cannot_be_changed(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 4


# Trainer's own knobs


def test_trainer_arguments_pass_through_under_their_own_names(tmp_path):
    from transformers import TrainingArguments

    section = TrainingSection(
        num_train_epochs=2.0,
        max_grad_norm=0.0,
        gradient_checkpointing=True,
        connector_learning_rate=1e-4,
        optim="adafactor",
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, **section.trainer_arguments()
    )
    assert (arguments.num_train_epochs, arguments.max_grad_norm) == (2.0, 0.0)
    assert arguments.gradient_checkpointing is True
    assert arguments.optim == "adafactor"


# Mistakes


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "tuner.botleneck_dim=4",
            "tuner.botleneck_dim: unknown key; did you mean 'bottleneck_dim'?",
        ),
        ("data.train[0].spilt=val", "data.train[0].spilt: unknown key; did you mean 'split'?"),
        ("tunar=1", "tunar: unknown key; did you mean 'tuner'?"),
        (
            "max_steps=3",
            "max_steps: unknown key; it belongs to another section: training.max_steps",
        ),
        (
            "training.max_length=3",
            "training.max_length: unknown key, here and in TrainingArguments",
        ),
        (
            "model.max_length=3",
            "model.max_length: unknown key; it belongs to another section: data.max_length",
        ),
        ("tuner.zzz=1", "tuner.zzz: unknown key; allowed: type, bottleneck_dim, router"),
        (
            "training.learning_rat=1e-3",
            "training.learning_rat: unknown key, here and in TrainingArguments; "
            "did you mean 'learning_rate'?",
        ),
        ("training.output_dir=x", "training.output_dir: not set here; give --out"),
        ("training.warmup_ratio=0.1", "training.warmup_ratio: not set here; set warmup_steps to"),
        (
            "tuner.type=loora",
            "tuner.type: 'loora' is not allowed; one of 'mma', 'mixlora', 'lora_experts', 'lora', "
            "'peft', 'full', 'none'",
        ),
        (
            "model.dtype=bfloat61",
            "model.dtype: 'bfloat61' is not allowed; one of 'float32', 'bfloat16' or 'float16'; "
            "did you mean 'bfloat16'?",
        ),
        (
            "data.train[1].max_examples=0",
            "data.train[1].max_examples: 0 was given; it should be greater than or equal to 1",
        ),
        ("tuner.dropout=two", "tuner.dropout: 'two' was given; it should be a valid number"),
        ("tuner.dropout=.nan", "tuner.dropout: nan was given; it should be a finite number"),
        ("seed=true", "seed: True was given; it should be a valid integer"),
        ("seed='3'", "seed: '3' was given; it should be a valid integer"),
        ("data=3", "data: 3 was given; it should be a section of 'key: value' lines"),
        ("data.train=a.json", "data.train: 'a.json' was given; it should be a valid list"),
        ("model.connector={}", "model.connector: there is no vision_tower for it to read"),
        ("model={}", "model.language_model: missing"),
        (
            "model={language_model: a, vision_tower: b, connector: "
            "{type: cls_pyramid, num_tokens: 1}}",
            "model.connector.num_tokens: belongs to type patch_mlp, and this is cls_pyramid",
        ),
        ("data.row_length=64", "data.row_length: 64 is below max_length 512"),
        ("data.train[2].path=x", "data.train[2].path: data.train is a list of 2; it has no '2'"),
        ("seed.deeper=1", "seed.deeper: seed is 3, it has no 'deeper'"),
        ("seed", "--set seed: give it as key=value"),
        ("seed={", "--set seed"),
        ("data.train[1].path=alpca.json", "data.train[1].path: no file 'alpca.json'"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_mend(folder, override, sentence):
    assert refusal(folder, "seed=3", override).startswith(sentence)


def test_a_missing_file_is_answered_with_the_nearest(folder):
    text = (folder / "recipe.yaml").read_text().replace("{path: alpaca", "{path: alpca")
    (folder / "recipe.yaml").write_text(text)
    expected = "data.train[1].path: no file 'alpca.json'; did you mean 'alpaca.json'?"
    assert refusal(folder) == expected
    assert load_recipe(folder / "recipe.yaml", check_paths=False).data.train[1].epochs == 2


def test_every_mistake_gets_a_line(folder):
    sentences = refusal(folder, "sead=1", "tuner.scale=big").splitlines()
    assert len(sentences) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {a: 1\nb: 2", r"page.yaml:2: "),
        ("model: {}\nseed: 1\nseed: 2\n", r"page.yaml:3: the key 'seed' stands twice"),
        ("- a\n- b\n", r"page.yaml: a page of 'section: ...' was expected"),
        ("", r"page.yaml: a page of 'section: ...' was expected"),
        (
            "a: !!python/object/apply:os.getcwd []",
            r"page.yaml:1: could not determine a constructor",
        ),
    ],
)
def test_a_page_that_is_no_recipe_is_refused(tmp_path, text, sentence):
    (tmp_path / "page.yaml").write_text(text)
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(tmp_path / "page.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "page.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "page.yaml")


def test_a_missing_recipe_is_answered_with_the_nearest(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match=r"no recipe 'recip.yaml'; did you mean 'recipe.yaml'\?"):
        load_recipe("recip.yaml")
    with pytest.raises(RecipeError, match="did you mean 'lavin-7b-scienceqa'"):
        load_recipe("lavin-7b-scienceq")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(folder)


# Properties


def _kinds(field):
    return field.get("anyOf", [field])


def _is_scalar(field):
    return all(
        {"enum", "const"} & set(kind) or kind.get("type") in ("null", *_DRAWS)
        for kind in _kinds(field)
    )


def _integers(kind):
    high = kind.get("exclusiveMaximum", 10**6 + 1) - 1
    return st.integers(kind.get("minimum", -(10**6)), high)


def _numbers(kind):
    return st.floats(
        kind.get("exclusiveMinimum", kind.get("minimum", -1e9)),
        kind.get("exclusiveMaximum", 1e9),
        exclude_min="exclusiveMinimum" in kind,
        exclude_max="exclusiveMaximum" in kind,
    )


_DRAWS = {
    "boolean": lambda kind: st.booleans(),
    "string": lambda kind: st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
    "integer": _integers,
    "number": _numbers,
}


def _value(kind):
    if "enum" in kind or "const" in kind:
        return st.sampled_from(kind.get("enum", [kind.get("const")]))
    return st.none() if kind["type"] == "null" else _DRAWS[kind["type"]](kind)


def sections(section, **fixed):
    """Draw a section with some of its scalar fields set, each within what its schema allows."""
    scalar = {
        name: st.one_of([_value(kind) for kind in _kinds(field)])
        for name, field in section.model_json_schema()["properties"].items()
        if name not in fixed and _is_scalar(field)
    }
    required = {name: scalar.pop(name) for name in list(scalar) if _is_required(section, name)}
    return st.fixed_dictionaries({**fixed, **required}, optional=scalar)


def _is_required(section, name):
    return section.model_fields[name].is_required()


def pages():
    lengths = {"max_length": st.integers(1, 64), "row_length": st.integers(64, 128)}
    one_place = {"path": st.just("a.json")}
    of_a_score = {"metric": st.none()}  # belongs to data.evaluate
    any_prompt = {
        "prompt_format": st.sampled_from(PROMPT_FORMATS),
        "prompt_text": st.just("plain"),
        "instructions": st.just("plain"),
    }
    worded = {
        "prompt_format": st.sampled_from(["QCM-A", "QCM-ALE"]),
        "prompt_text": st.just("plain"),
        "instructions": st.just("varied"),
        "use_captions": st.just(False),
    }
    drawn = [
        sections(FileSection, **one_place, **of_a_score, **prompts, weight=st.none())
        for prompts in (any_prompt, worded)
    ]
    sources = st.lists(st.one_of(drawn), max_size=2)
    letters = st.characters(categories=["L", "N"])
    templates = st.sampled_from([None, *CHAT_TEMPLATES, "{% for m in messages %}\n{% endfor %}"])
    steps = st.integers(1, 10**6).map(float)
    training = {
        "lr_scheduler_type": st.sampled_from(["linear", "cosine", "inverse_sqrt"]),
        "logging_steps": st.one_of(steps, st.floats(0, 1, exclude_min=True)),
        "save_steps": steps,
        "fp16": st.just(False),
        "eval_steps": st.integers(1, 9).map(float),
        "eval_questions": st.integers(1, 9),
        "early_stopping_patience": st.integers(1, 9),
    }
    return sections(
        Recipe,
        name=st.none() | st.text(letters, min_size=1, max_size=40),
        model=sections(ModelSection, vision_tower=st.none()),
        tuner=st.one_of(sections(MMASection), sections(LoraSection, type=st.just("lora"))),
        data=sections(DataSection, train=sources, chat_template=templates, **lengths),
        training=sections(TrainingSection, **training),
        evaluation=sections(EvaluationSection),
    )


@given(pages())
def test_a_recipe_survives_a_round_trip(page):
    recipe = validate(Recipe, page)
    again = validate(Recipe, parse_yaml(recipe.dump_yaml(), "dump"))
    assert again == recipe
    assert again.dump_yaml() == recipe.dump_yaml()


@given(
    page=pages(),
    place=st.sampled_from(["", "model.", "data.", "tuner.", "evaluation."]),
    key=st.from_regex(r"[a-z_]{1,12}x", fullmatch=True),
)
def test_an_unknown_key_always_fails(page, place, key):
    put(page, place + key, 1)
    with pytest.raises(RecipeError, match=f"{place}{key}: unknown key"):
        validate(Recipe, page)


# Sections by type, and keys of earlier versions


def test_a_key_of_another_type_names_its_type():
    page = {"language_model": "a", "vision_tower": "b", "connector": {"type": "mlp2x_gelu"}}
    page["connector"]["num_tokens"] = 4
    with pytest.raises(RecipeError) as caught:
        load_recipe({"model": page, "tuner": {"type": "mma", "rank": 4}}, check_paths=False)
    assert str(caught.value).splitlines() == [
        "model.connector.num_tokens: belongs to type patch_mlp, and this is mlp2x_gelu",
        "tuner.rank: belongs to type mixlora or lora_experts or lora, and this is mma",
    ]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"format": "llava"}, ".path: give either path or hub"),
        ({"path": "a.json", "hub": "a/b"}, ".path: give either path or hub"),
        ({"path": "a.json", "subset": "c"}, ".subset: belongs to type hub, and this is file"),
        ({"hub": "a/b", "field": "rows"}, ".field: belongs to type file, and this is hub"),
        ({"type": "hub"}, ".hub: missing"),
    ],
)
def test_a_source_is_a_file_or_a_data_set_of_the_hub(source, text):
    with pytest.raises(RecipeError) as caught:
        load_recipe({"model": MODEL, "data": {"train": [source]}}, check_paths=False)
    assert str(caught.value) == f"data.train[0]{text}"


def test_another_file_is_read_as_a_source_of_the_hub_was():
    source = HubSection(hub="a/b", subset="c", format="llava", columns={"image": "x"})
    other = FileSection(path="/d.json", format="llava", columns={"image": "x"})
    assert source.at("/d.json") == other
    assert other.at("/e.json") == other.model_copy(update={"path": "/e.json"})


def test_an_alignment_needs_a_connector():
    page = {"model": {"language_model": "a"}, "alignment": {"steps": 4}}
    with pytest.raises(RecipeError, match=r"alignment: fits a connector.*set it to null"):
        load_recipe(page)


FORMER = {
    "model.picture_side": (56, "the key is now model.image_side"),
    "model.connector.alignment": ("words", "the key is now alignment, a section of its own"),
    "model.connector.alignment_steps": (4, "the key is now alignment.steps"),
    "model.connector.alignment_scale": (4.0, "the key is now alignment.scale"),
    "model.connector.plain": (True, "the key is now model.connector.type, mlp2x_gelu"),
}


@pytest.mark.parametrize("key", FORMER)
def test_a_key_of_an_earlier_version_is_answered_with_todays(key):
    value, text = FORMER[key]
    with pytest.raises(RecipeError, match=f"^{re.escape(key)}: {re.escape(text)}"):
        load_recipe("demo", {key: value}, check_paths=False)


def of_an_earlier_run(model, **connector):
    words = {"alignment": "words", "alignment_steps": 7, "alignment_batch_size": 8}
    words |= {"alignment_learning_rate": 2e-3, "alignment_scale": 9.0, "plain": False}
    sizes = {"hidden_dim": None, "num_tokens": None, "num_global_tokens": 0, "weights": None}
    model |= {"language_model": "a", "vision_tower": "b", "picture_side": None}
    model["connector"] = {"type": "patch_mlp", **words, **sizes, **connector}
    provenance = {"versions": {}, "data": {}, "base_fingerprint": None}
    return load_recipe({"model": model, "provenance": provenance}, check_paths=False)


def test_the_recipe_of_an_earlier_run_is_read_with_its_alignment():
    recipe = of_an_earlier_run({}, num_tokens=4)
    assert recipe.model.connector == PatchMLPSection(num_tokens=4)
    assert recipe.alignment == AlignmentSection(
        steps=7, batch_size=8, learning_rate=2e-3, scale=9.0
    )
    recipe = of_an_earlier_run({}, alignment=None, type="cls_pyramid", hidden_dim=128)
    assert recipe.model.connector == ClsPyramidSection(hidden_dim=128)
    assert recipe.alignment is None


def test_the_recipe_of_an_earlier_run_with_llavas_projector_is_read():
    recipe = of_an_earlier_run({}, plain=True, weights="/runs/stage1")
    assert recipe.model.connector == LlavaMLPSection(weights="/runs/stage1")


def test_the_sources_of_an_earlier_run_are_read():
    empty = {"subset": None, "field": None, "split": None}
    sources = [{"path": "/a", "hub": None, **empty}, {"path": None, "hub": "a/b", **empty}]
    provenance = {"versions": {}, "data": {}, "base_fingerprint": None}
    page = {"model": dict(MODEL), "data": {"train": sources}, "provenance": provenance}
    recipe = load_recipe(page, check_paths=False)
    assert recipe.data.train == (FileSection(path="/a"), HubSection(hub="a/b"))


def test_the_recipe_of_an_earlier_run_on_a_qwen_vl_is_read():
    provenance = {"versions": {}, "data": {}, "base_fingerprint": None}
    model = {"language_model": "a", "vision_tower": None, "connector": None, "picture_side": 56}
    recipe = load_recipe({"model": model, "provenance": provenance}, check_paths=False)
    assert recipe.model.image_side == 56


# Recipes that ship


@pytest.mark.parametrize("file", sorted(TREE.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_recipe_is_valid_and_found_by_its_bare_name(file):
    recipe = load_recipe(file, check_paths=False)
    assert load_recipe(file.stem, check_paths=False) == recipe
    assert recipe.name == file.stem
    assert (SHIPPED / file.name).is_file()


def test_a_shipped_recipe_reads_its_data_where_the_user_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("lavin-7b-scienceqa", check_paths=False)
    assert recipe.data.train[0].path == str(tmp_path / "data" / "scienceqa")


def check_prepared_as_lavin(recipe):
    images = recipe.model.image_preparation
    assert images is not None
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (images.fit, (images.mean, images.std)) == ("squash", imagenet)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_lavins_other_recipes_have_its_prompts_and_images(size):
    chat = load_recipe(f"chat-{size}", check_paths=False)
    assert chat.data.chat_template == "lavin_chat"
    check_prepared_as_lavin(chat)
    small = load_recipe(f"lavin-{size}-scienceqa-4bit", check_paths=False)
    whole = load_recipe(f"lavin-{size}-scienceqa", check_paths=False)
    assert small.data == whole.data
    assert small.model.image_preparation == whole.model.image_preparation


@pytest.mark.parametrize(
    ("names", "template", "fit"),
    [
        (("mlan-stage1-llama2-7b", "mlan-stage1-vicuna-7b"), "llava_plain", None),
        (("mlan-stage2-llama2-7b", "mlan-stage2-llama2-7b-lora"), "vicuna_v1", "pad"),
        (("mlan-stage2-vicuna-7b",), "vicuna_v1", "pad"),
        (("mixlora-stage1-7b",), "llava_plain", None),
        (("mixlora-vision-flan-7b",), "vicuna_v1", None),
    ],
)
def test_llavas_descendants_have_its_prompts_and_images(names, template, fit):
    for name in names:
        recipe = load_recipe(name, check_paths=False)
        images = recipe.model.image_preparation
        found = (recipe.data.chat_template, images and images.fit)
        assert found == (template, fit)


@pytest.mark.parametrize(("size", "temperature"), [("7b", 10.0), ("13b", 5.0)])
def test_lavin_recipes_carry_the_settings_of_the_paper(size, temperature):
    recipe = load_recipe(f"lavin-{size}-scienceqa", check_paths=False)
    training, tuner = recipe.training, recipe.tuner
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert batch == 32
    assert not recipe.data.packing
    assert training.learning_rate == pytest.approx(9e-3 * batch / 256, rel=1e-12)
    assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.95)
    assert (training.weight_decay, training.max_grad_norm) == (0.02, 0.0)
    assert training.num_train_epochs * training.warmup_steps == 2.0
    assert training.lr_scheduler_type == "cosine"
    assert isinstance(tuner, MMASection)
    assert (tuner.bottleneck_dim, tuner.router_temperature) == (8, temperature)
    assert tuner.adapt_vision_tower
    assert recipe.model.connector is not None
    assert recipe.model.connector.type == "cls_pyramid"
    assert recipe.data.max_length == 512
    for source in (*recipe.data.train, *recipe.data.evaluate):
        read = (source.prompt_format, source.prompt_text, source.answer_as)
        assert read == ("QCM-ALE", "published", "letter")
    assert recipe.data.chat_template == "lavin"
    check_prepared_as_lavin(recipe)


# Sections as a mapping


def test_a_mapping_is_read_as_the_file_with_the_same_sections(folder, monkeypatch):
    monkeypatch.chdir(folder)
    train = ({"path": Path("alpaca.json")}, {"path": "alpaca.json", "epochs": 2})
    sections = {"name": "recipe", "model": dict(MODEL), "data": {"train": train}}
    assert load_recipe(sections) == load_recipe("recipe.yaml")
    assert load_recipe({**sections, "model": ModelSection(**MODEL)}) == load_recipe("recipe.yaml")


def test_an_override_does_not_reach_what_was_given(folder):
    sections = {"model": dict(MODEL), "data": {"train": [{"path": str(folder / "alpaca.json")}]}}
    changed = load_recipe(sections, {"data.train[0].epochs": 3.0, "seed": 4})
    assert (changed.data.train[0].epochs, changed.seed, changed.name) == (3.0, 4, None)
    assert sections["data"]["train"] == [{"path": str(folder / "alpaca.json")}]
    again = load_recipe(changed, ["data.train[0].epochs=1.5"])
    assert (again.data.train[0].epochs, again.seed) == (1.5, 4)
    assert load_recipe(changed) == changed


def test_a_mistake_in_a_mapping_is_named_with_its_place():
    with pytest.raises(RecipeError, match=r"^trainin: unknown key; did you mean 'training'\?$"):
        load_recipe({"model": MODEL, "trainin": {}})
    with pytest.raises(RecipeError, match=r"^data.train\[0\].path: no file 'nowhere.json'"):
        load_recipe({"model": MODEL, "data": {"train": [{"path": "nowhere.json"}]}})


# The page describes itself


def test_every_knob_is_described():
    schema = Recipe.model_json_schema()
    for name, section in {**schema["$defs"], "Recipe": schema}.items():
        for key, field in section["properties"].items():
            described = "description" in field or "$ref" in field or "oneOf" in field
            assert described or key in ("type", "model"), f"{name}.{key} has no description"


def test_a_recipe_is_read_without_torch(folder):
    code = (
        "import sys; from varifocal.recipe import load_recipe; "
        f"load_recipe({str(folder / 'recipe.yaml')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_dump_is_yaml_that_others_read(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    page = yaml.safe_load(recipe.dump_yaml())
    assert page["data"]["train"][1]["epochs"] == 2
    assert list(page) == list(Recipe.model_fields)


def test_a_text_that_looks_like_a_number_stays_one():
    page = {"name": "1e3", "model": {"language_model": "a"}}
    text = validate(Recipe, page).dump_yaml()
    assert validate(Recipe, parse_yaml(text, "page")).name == "1e3"


@pytest.mark.parametrize(("products", "format_"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_auto_is_what_the_machine_is_fast_in(monkeypatch, products, format_):
    monkeypatch.setattr("varifocal.recipe.model.has_bfloat16", lambda: products)
    demo = load_recipe("demo", check_paths=False)
    assert demo.model.dtype == format_
    assert f"dtype: {format_}" in demo.dump_yaml()
    assert load_recipe("demo", ["model.dtype=float16"], check_paths=False).model.dtype == "float16"
    choices = Recipe.model_json_schema()["$defs"]["ModelSection"]["properties"]["dtype"]["enum"]
    assert choices == ["auto", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("gpu", "dtype", "attention"),
    [(True, "float32", "sdpa"), (False, "float32", "segments"), (False, "bfloat16", "eager")],
)
def test_attention_auto_is_what_trains_fastest_here(monkeypatch, gpu, dtype, attention):
    monkeypatch.setattr("varifocal.recipe.processor.has_gpu", lambda: gpu)
    demo = load_recipe("demo", [f"model.dtype={dtype}"], check_paths=False)
    assert demo.model.attn_implementation == attention
    assert f"attn_implementation: {attention}" in demo.dump_yaml()


def test_bfloat16_is_found_as_torch_finds_it():
    assert processor_has_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("device", ["/dev/nvidiactl", "/dev/kfd", None])
def test_a_gpu_makes_up_for_the_processor(monkeypatch, device):
    monkeypatch.setattr("varifocal.recipe.processor.processor_has_bfloat16", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == device)
    assert has_bfloat16() == (device is not None)
