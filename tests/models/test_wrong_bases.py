"""Base checkpoints with one thing wrong each: every one is refused in a sentence that names it."""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from varifocal.errors import VarifocalError
from varifocal.models import load_model, names
from varifocal.recipe import ModelSection

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
FC = "encoder.layers.1.mlp.fc1.weight"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "hub_is_reachable", lambda: False)


@pytest.fixture(scope="session")
def bases(tmp_path_factory, make_llama, make_tokenizer, make_vit, llava, make_qwen_vl):
    """Folders of a language model, a tower, a LLaVA and a Qwen-VL; nobody changes them."""
    root = tmp_path_factory.mktemp("bases")
    make_llama(vocab_size=len(make_tokenizer())).save_pretrained(root / "language")
    make_tokenizer().save_pretrained(root / "language")
    make_vit("clip").save_pretrained(root / "tower")
    side = {"height": 28, "width": 28}
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side)
    images.save_pretrained(root / "tower")
    shutil.copytree(llava, root / "llava")
    make_qwen_vl(root / "qwen")
    return root


@pytest.fixture
def sound(bases, tmp_path):
    """A copy of them that a fault is put into."""
    return shutil.copytree(bases, tmp_path / "bases")


def section(root, part, **changes):
    """The model section under which a folder is loaded."""
    page = {"dtype": "float32", "language_model": str(root / "language"), **changes}
    if part == "tower":
        page["vision_tower"] = str(root / "tower")
    elif part == "qwen":
        page |= {"language_model": str(root / "qwen"), "image_side": 112}
    elif part == "llava":
        page["language_model"] = str(root / "llava")
    return ModelSection(**page)


def config(file="config.json", **changes):
    """Set keys of a JSON file; a dotted key goes into a part."""

    def put(folder):
        page = json.loads((folder / file).read_text())
        for key, value in changes.items():
            *parts, last = key.split("__")
            place = page
            for part in parts:
                place = place[part]
            place[last] = value
        (folder / file).write_text(json.dumps(page))

    return put


def tensors(change):
    """Apply a change to the dictionary of a checkpoint's tensors."""

    def put(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return put


def lose(*ends):
    """Take those tensors away whose names end so."""

    def change(held):
        gone = [name for name in held if name.endswith(ends)]
        assert gone
        for name in gone:
            del held[name]

    return tensors(change)


def cut(end):
    """Halve a tensor's first side."""

    def change(held):
        name = next(name for name in held if name.endswith(end))
        held[name] = held[name][: len(held[name]) // 2].clone()

    return tensors(change)


def put_in(end, number):
    """Put a number into a tensor."""

    def change(held):
        name = next(name for name in held if name.endswith(end))
        held[name].view(-1)[3] = number

    return tensors(change)


def cast(end, dtype):
    """Store a tensor in another number format."""

    def change(held):
        name = next(name for name in held if name.endswith(end))
        held[name] = held[name].to(dtype)

    return tensors(change)


def pipe(file):
    """Put a pipe that nobody writes into in a file's place."""

    def put(folder):
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return put


def add(name):
    return tensors(lambda held: held.update({name: next(iter(held.values())).clone()}))


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def remove(file):
    return lambda folder: (folder / file).unlink()


def shorten(file, left):
    def put(folder):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * left)])

    return put


def shards(change):
    """Split the weights into two files with an index, then apply a change to the folder."""

    def put(folder):
        held = load_file(folder / WEIGHTS)
        names = sorted(held)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, own in parts.items():
            save_file({name: held[name] for name in own}, folder / file, metadata={"format": "pt"})
        places = {name: file for file, own in parts.items() for name in own}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (folder / WEIGHTS).unlink()
        change(folder)

    return put


LANGUAGE = {
    "a tensor is missing": (lose(UP), rf"1 missing \({UP}\)"),
    "a layer is missing": (
        lose(*[f"layers.2.{each}.weight" for each in ("input_layernorm", "self_attn.q_proj")]),
        r"2 missing \(model\.layers\.2\.input_layernorm\.weight, ",
    ),
    "the head is missing": (lose("lm_head.weight"), r"1 missing \(lm_head\.weight\)"),
    "both tied tables are missing": (
        lambda folder: (
            lose("lm_head.weight", "embed_tokens.weight")(folder),
            config(tie_word_embeddings=True)(folder),
        ),
        r"missing \(lm_head\.weight, model\.embed_tokens\.weight\)",
    ),
    "a tensor is left over": (add("model.layers.1.mlp.odd.weight"), r"1 left over \(.*mlp\.odd"),
    "fewer layers than are held": (config(num_hidden_layers=2), r"9 left over \(model\.layers\.2"),
    "a tensor of another shape": (cut(UP), r"of another shape \(.* is 24 x 32 there and 48 x 32"),
    "more layers than are held": (
        config(num_hidden_layers=7),
        r"says 7 layers \(llama\), and its weights hold 3",
    ),
    "a width that nothing has": (config(hidden_size=64), r"hidden_size 64 .*a side of that length"),
    "a wider perceptron": (config(intermediate_size=50), r"another shape \(.* and 32 x 50 in"),
    "a perceptron beyond every side": (config(intermediate_size=5000), "intermediate_size 5000 .*"),
    "a larger vocabulary": (config(vocab_size=4000), r"vocab_size 4000 .* longest side .* is 55"),
    "a depth of 10^9": (
        config(num_hidden_layers=10**9),
        r"json: num_hidden_layers is 1000",
    ),
    "a width of 10^9": (config(hidden_size=10**9), r"config\.json: hidden_size is 1000000000"),
    "a window of no tokens": (
        config(max_position_embeddings=0),
        r"config\.json: max_position_embeddings is 0; it must be a whole number from 1",
    ),
    "heads beyond every weight": (
        config(head_dim=2**20),
        r"describes a model of [\d,]+ parameters, and its weights hold [\d,]+ numbers",
    ),
    "no layers": (config(num_hidden_layers=0), r"num_hidden_layers is 0; .*whole number from 1"),
    "a negative width": (config(hidden_size=-32), r"hidden_size is -32; it must be a whole"),
    "a width in words": (config(hidden_size="wide"), r"hidden_size is 'wide'; it must be a whole"),
    "a width not divisible by heads": (
        config(num_attention_heads=5, head_dim=None),
        r"language' cannot be loaded: .*(32|multiple|divisible)",
    ),
    "a vocabulary below the pad id": (config(pad_token_id=99), r"pad_token_id 99, .* has 55 words"),
    "a vocabulary below the tokenizer's": (
        lambda folder: (
            config(vocab_size=27)(folder),
            cut("lm_head.weight")(folder),
            cut("embed_tokens.weight")(folder),
        ),
        r"its tokenizer gives '.*' the id 54, and config\.json says vocab_size 27",
    ),
    "an unknown activation": (
        config(hidden_act="no_such"),
        r"config\.json: hidden_act is 'no_such', which transformers does not know",
    ),
    "an unknown kind of positions": (
        config(rope_parameters={"rope_type": "no_such", "rope_theta": 1e4}),
        r"config\.json: rope_parameters\.rope_type is 'no_such', which transformers does not know",
    ),
    "an unknown architecture": (config(model_type="no_such"), r"language' cannot be .*`no_such`"),
    "a config that is no JSON": (
        write("config.json", b'{"model_type": '),
        r"config\.json is damaged",
    ),
    "a config that is a list": (write("config.json", b"[]"), r"config\.json .* a JSON object"),
    "a config of bytes": (write("config.json", b"\xff\xfe\x00{"), r"config\.json is damaged"),
    "an empty config": (write("config.json", b""), r"config\.json is damaged"),
    "a deeply nested config": (write("config.json", b"[" * 100_000), r"config\.json .* too deeply"),
    "weights cut short": (shorten(WEIGHTS, 0.5), r"model\.safetensors is damaged or cut short"),
    "a header cut short": (shorten(WEIGHTS, 0.01), r"model\.safetensors is damaged or cut short"),
    "empty weights": (write(WEIGHTS, b""), r"model\.safetensors is empty"),
    "garbled weights": (write(WEIGHTS, b"\xff" * 999), r"model\.safetensors is damaged"),
    "a pointer of Git LFS": (
        write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"model\.safetensors is a pointer of Git LFS.* git lfs pull",
    ),
    "weights that are a folder": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
        r"model\.safetensors is no file",
    ),
    "weights that are a pipe": (pipe(WEIGHTS), r"model\.safetensors is no file but a pipe"),
    "a tokenizer that is a pipe": (
        pipe("tokenizer.json"),
        r"tokenizer\.json is no file but a pipe",
    ),
    "a NaN": (
        put_in(UP, math.nan),
        rf"a NaN or an infinity in 1 of its tensors \({UP}\), and nothing can",
    ),
    "an infinity": (put_in("model.norm.weight", -math.inf), r"in 1 of .* \(model\.norm\.weight\)"),
    "a NaN in float8": (
        lambda folder: (put_in(UP, math.nan)(folder), cast(UP, torch.float8_e4m3fn)(folder)),
        rf"a NaN or an infinity in 1 of its tensors \({UP}\)",
    ),
    "whole numbers": (
        cast(UP, torch.int8),
        rf"holds whole numbers \(I8\) as 1 weights \({UP}\), and config\.json has no quantiz",
    ),
    "truth values": (cast(UP, torch.bool), r"holds whole numbers \(BOOL\) as 1 weights"),
    "no weights": (remove(WEIGHTS), r"it has no file named .* copy the weights next to"),
    "a shard is missing": (
        shards(remove("b.safetensors")),
        r"1 of 2 weight files are missing: b\.safetensors",
    ),
    "a shard is cut short": (shards(shorten("b.safetensors", 0.7)), r"b\.safetensors is damaged"),
    "a garbled index": (shards(write(INDEX, b'{"weight_map"')), r"index\.json is damaged"),
    "an index without places": (shards(write(INDEX, b"{}")), r"index\.json .* no weight_map"),
    "an index out of its folder": (
        shards(write(INDEX, b'{"weight_map": {"a": "../../x.safetensors"}}')),
        r"index\.json is damaged: '\.\./\.\./x\.safetensors' is no file name",
    ),
    "an index that promises more": (
        shards(config(INDEX, weight_map__odd="a.safetensors")),
        r"a\.safetensors does not hold 1 of .*: odd",
    ),
    "a dropout of 2": (
        config(attention_dropout=2.0),
        r"attention_dropout is 2\.0; it must be",
    ),
    "a tokenizer's length in words": (
        config("tokenizer_config.json", model_max_length="long"),
        r"its tokenizer reads no text: .*'str'; restore its tokenizer_config",
    ),
    "no tokenizer": (remove("tokenizer.json"), r"no tokenizer.*tokenizer\.json is missing"),
    "a garbled tokenizer": (shorten("tokenizer.json", 0.5), r"tokenizer\.json is damaged"),
    "another program's tokenizer": (write("tokenizer.json", b'{"a": 1}'), "cannot be loaded: "),
    "a garbled tokenizer's config": (
        write("tokenizer_config.json", b"{"),
        r"tokenizer_config\.json is damaged",
    ),
    "an empty tokenizer": (
        lambda folder: (
            (folder / "tokenizer.json").unlink(),
            write("tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer"}')(folder),
        ),
        r"reads no text at all, it has 3 tokens; .* missing or empty \(.*tokenizer\.json",
    ),
    "a garbled generation config": (
        write("generation_config.json", b"{"),
        r"generation_config\.json is damaged",
    ),
    "an empty template": (
        write("chat_template.jinja", b"\n"),
        r"chat template \(.*chat_template\.jinja\) is empty; copy it again, or delete it",
    ),
    "a template that is no Jinja": (
        write("chat_template.jinja", b"{% for message in"),
        r"chat_template\.jinja\) cannot write a single user turn: TemplateSyntaxError",
    ),
    "a template that raises": (
        write("chat_template.jinja", b"{{ raise_exception('never') }}"),
        r"chat_template\.jinja\) cannot write .*: never",
    ),
    "a template that divides by zero": (
        write("chat_template.jinja", b"{{ 1 // 0 }}"),
        r"chat_template\.jinja\) cannot write .*: ZeroDivisionError",
    ),
}
TOWER = {
    "a NaN": (put_in(FC, math.nan), rf"a NaN or an infinity in 1 of its tensors \(.*{FC}\)"),
    "a tensor is missing": (lose(FC), rf"1 missing \({FC}\)"),
    "fewer blocks than are held": (config(num_hidden_layers=4), r"64 left over \(.*layers\.4"),
    "more blocks than are held": (config(num_hidden_layers=9), r"9 layers .* weights hold 8"),
    "a tensor of another shape": (cut(FC), r"another shape \(.*fc1\.weight is 20 x 24 there"),
    "a width that nothing has": (config(hidden_size=28), r"hidden_size 28 \(clip_vision_model\)"),
    "a width not divisible by heads": (
        config(num_attention_heads=5),
        ".*24.* multiple",
    ),
    "images of another size": (config(image_size=56), r"56 x 56 pixels, not 28"),
    "an image without pixels": (config(image_size=0), r"config\.json: image_size is 0"),
    "patches without pixels": (config(patch_size=0), r"config\.json: patch_size is 0"),
    "weights cut short": (shorten(WEIGHTS, 0.5), r"model\.safetensors is damaged or cut short"),
    "no weights": (remove(WEIGHTS), r"tower' cannot be .* copy the weights next to"),
    "an image processor with two means": (
        config("preprocessor_config.json", image_mean=[0.5, 0.5]),
        r"its image processor reads no image: mean must have 3 elements",
    ),
    "an image processor that divides by zero": (
        config("preprocessor_config.json", image_std=[0, 0, 0]),
        r"makes no usable pixels of an image; correct the sizes, image_mean, image_std and resc",
    ),
    "an image processor that blackens": (
        config("preprocessor_config.json", rescale_factor=0),
        r"makes no usable pixels of an image",
    ),
    "an image processor that crops to nothing": (
        config("preprocessor_config.json", crop_size={"height": 0, "width": 0}),
        r"its image processor (reads no image|makes no usable pixels)",
    ),
    "a garbled image processor": (
        write("preprocessor_config.json", b'{"size": '),
        r"preprocessor_config\.json is damaged",
    ),
    "an image processor of words": (
        config("preprocessor_config.json", size="wide"),
        r"tower' cannot be loaded: .*wide",
    ),
}
LLAVA = {
    "an image token past the vocabulary": (
        config(image_token_id=999, image_token_index=999),
        r"images stand at token 999, and the processor writes '<image>', which is \d+; take both",
    ),
    "another word's id for the image token": (
        config(image_token_id=3, image_token_index=3),
        r"images stand at token 3, and the processor writes '<image>'",
    ),
    "states of a block that the tower lacks": (
        config(vision_feature_layer=-9),
        r"vision_feature_layer -9, and its vision tower has 2 blocks; restore config\.json",
    ),
    "no processor of a LLaVA": (
        config("processor_config.json", processor_class="NoSuch"),
        r"its processor reads no images, it is a \w+; restore its processor_config\.json",
    ),
    "a NaN in the projector": (
        put_in("projector.linear_1.weight", math.nan),
        r"a NaN or an infinity in 1 of its tensors \(.*multi_modal_projector\.linear_1\.weight\)",
    ),
    "a tensor of the language model is missing": (lose("layers.1.mlp.up_proj.weight"), "1 missing"),
    "a tensor of the tower is missing": (lose("layers.1.mlp.fc1.weight"), r"1 missing \(.*vision"),
    "the projector is missing": (
        lose("projector.linear_1.weight", "projector.linear_2.weight"),
        r"2 missing \(.*multi_modal_projector\.linear_1\.weight, ",
    ),
    "a tensor is left over": (add("model.vision_tower.odd"), r"1 left over \(model\.vision_t"),
    "a deeper language model": (
        config(text_config__num_hidden_layers=900),
        r"900 layers \(llam",
    ),
    "a deeper tower": (config(vision_config__num_hidden_layers=900), r"900 layers \(clip_vision"),
    "a negative depth": (
        config(text_config__num_hidden_layers=-2),
        r"text_config\.num_hidden_layers is -2",
    ),
    "weights cut short": (shorten(WEIGHTS, 0.5), r"model\.safetensors is damaged or cut short"),
    "a garbled processor": (write("processor_config.json", b"{"), r"processor_config\.json is dam"),
    "a template that raises": (
        write("chat_template.jinja", b"{{ raise_exception('never') }}"),
        r"chat_template\.jinja\) cannot write .*: never",
    ),
}
QWEN = {
    "a tensor of the tower is missing": (lose("blocks.1.mlp.fc1.weight"), r"1 missing \(.*visual"),
    "a tensor of the language model is missing": (lose("layers.1.mlp.up_proj.weight"), "1 missing"),
    "the merger is missing": (lose("merger.mlp.0.weight"), r"1 missing \(.*merger\.mlp\.0\.weight"),
}
WRONG = [
    pytest.param(part, fault, sentence, id=f"{part}: {name}")
    for part, table in {
        "language": LANGUAGE,
        "tower": TOWER,
        "llava": LLAVA,
        "qwen": QWEN,
    }.items()
    for name, (fault, sentence) in table.items()
]


@pytest.mark.parametrize(("part", "fault", "sentence"), WRONG)
def test_a_base_with_one_thing_wrong_is_refused(sound, part, fault, sentence):
    fault(sound / part)
    with pytest.raises(VarifocalError, match=sentence) as told:
        load_model(section(sound, part))
    assert "\n" not in str(told.value)
    assert str(sound / part) in str(told.value) or "CLIPVisionModel" in str(told.value)


@pytest.mark.parametrize(
    "lost",
    ["connector.local.0.weight", "language_model.lm_head.weight", "vision_tower.model." + FC],
)
def test_a_saved_graft_that_lacks_a_tensor_is_refused(sound, lost):
    loaded = load_model(section(sound, "tower"))
    loaded.model.save_pretrained(sound / "language")
    loaded.processor.save_pretrained(sound / "language")
    load_model(section(sound, "language"))
    lose(lost)(sound / "language")
    with pytest.raises(VarifocalError, match=rf"1 missing \({lost}\)"):
        load_model(section(sound, "language"))


@pytest.mark.parametrize("part", ["language", "tower", "llava", "qwen"])
def test_the_bases_that_faults_are_put_into_load(sound, part):
    assert load_model(section(sound, part)).fingerprint


@pytest.mark.parametrize("name", ["a depth of 10^9", "more layers than are held", "no layers"])
def test_a_plan_refuses_it_too(sound, name):
    fault, sentence = LANGUAGE[name]
    fault(sound / "language")
    with pytest.raises(VarifocalError, match=sentence):
        load_model(section(sound, "language"), meta=True)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_that_lacks_a_tensor_is_refused(sound, quantization):
    pytest.importorskip("bitsandbytes")
    lose(UP)(sound / "language")
    with pytest.raises(VarifocalError, match=rf"1 missing \({UP}\)"):
        load_model(section(sound, "language", quantization=quantization))


@pytest.mark.parametrize(
    "lost",
    ["model.norm.weight", "model.layers.1.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", UP],
)
def test_a_base_packed_before_that_lacks_a_tensor_is_refused(bases, tmp_path, lost):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "language"
    load_model(section(bases, "language", quantization="nf4")).model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bases / "language" / file, folder)
    load_model(section(tmp_path, "language"))
    lose(lost)(folder)
    with pytest.raises(VarifocalError, match=rf"{lost.partition('.quant_state')[0]}"):
        load_model(section(tmp_path, "language"))
