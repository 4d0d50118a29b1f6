"""Trained weights in llama.cpp: SmolLM2-135M, with and without a ViT that was trained.

The ViT is `sciencebook-vit`, which is DINOv2's form. llama.cpp knows SigLIP's, so its weights stand
in one: layer scales go into the matrices in front of them, the class token is left out.
It takes minutes, so no suite collects this file; `-s` shows what it found:
`pytest -s tests/export/smollm2_in_llama_cpp.py`.
"""

import json
from pathlib import Path

import PIL.Image
import pytest
from safetensors.torch import load_file
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

import varifocal.models
from varifocal.assemble import open_run
from varifocal.data.example import Example, Image, Message
from varifocal.exporting.export import export_run
from varifocal.exporting.parity import prompts
from varifocal.exporting.request import Order
from written import first_difference, greedy_answers

pytest.importorskip("gguf")

IMAGES, TOKENS = 20, 64
QUESTIONS = ["What is the capital of France?", "Why is the sky blue?"]
_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SCALES = {"attention.output.dense": "layer_scale1", "mlp.fc2": "layer_scale2"}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Save the trained ViT's weights as a SigLIP tower, of which all six blocks run."""
    source = Path(varifocal.models.__file__).parent / "sciencebook_vit"
    page = json.loads((source / "config.json").read_text())
    images = json.loads((source / "preprocessor_config.json").read_text())
    old = {name: value.float() for name, value in load_file(source / "model.safetensors").items()}
    side = page["image_size"]
    sizes = {"hidden_size": page["hidden_size"], "num_hidden_layers": page["num_hidden_layers"]}
    sizes |= {"num_attention_heads": page["num_attention_heads"], "intermediate_size": 768}
    sizes |= {"image_size": side, "patch_size": page["patch_size"]}
    sizes |= {"hidden_act": "gelu", "layer_norm_eps": page["layer_norm_eps"]}
    model = SiglipVisionModel(SiglipVisionConfig(**sizes))
    new = model.state_dict()
    stem = next(name for name in new if name.endswith("patch_embedding.weight"))
    stem = stem.removesuffix("embeddings.patch_embedding.weight")
    embeddings = f"{stem}embeddings."
    for kind in ("weight", "bias"):
        own = old[f"embeddings.patch_embeddings.projection.{kind}"]
        new[f"{embeddings}patch_embedding.{kind}"] = own
    new[f"{embeddings}position_embedding.weight"] = old["embeddings.position_embeddings"][0, 1:]
    for block in range(page["num_hidden_layers"]):
        theirs = f"encoder.layer.{block}."
        for name, ours in _NAMES.items():
            for kind in ("weight", "bias"):
                value = old[f"{theirs}{name}.{kind}"]
                if name in _SCALES:
                    scale = old[f"{theirs}{_SCALES[name]}.lambda1"]
                    value = value * (scale[:, None] if kind == "weight" else scale)
                new[f"{stem}encoder.layers.{block}.{ours}.{kind}"] = value
    model.load_state_dict(new)
    place = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(place)
    square = {"height": side, "width": side}
    SiglipImageProcessorPil(
        size=square, image_mean=images["image_mean"], image_std=images["image_std"]
    ).save_pretrained(place)
    page = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(page | {"vision_feature_layer": -1}))
    return place


def test_llama_cpp_writes_with_trained_weights_what_the_run_writes(
    make_run, siglip, tmp_path, ask_llama_cpp
):
    tuner = {"type": "lora", "lora_alpha": 0.5}
    run = make_run(tuner, siglip, language="smollm2-135m-instruct")
    (done,) = export_run(Order(run, "llamacpp", num_prompts=2), tmp_path / "out")
    _, parts = open_run(run.root)
    shown = [example.messages[0] for example in prompts(IMAGES, images=True)]
    images = [saved(message.content[0], tmp_path / f"{i}.png") for i, message in enumerate(shown)]
    texts = [Example((Message("user", (question,)),)) for question in QUESTIONS]
    asked = "What does the image show?"
    seen = [Example((Message("user", (Image(path=image), asked)),)) for image in images]
    job = {"model": str(done.directory / "model.gguf"), "tokens": TOKENS, "sampled": 0, "size": 512}
    mmproj = {"mmproj": str(done.directory / "mmproj.gguf"), "images": [str(i) for i in images]}
    image_token = parts.encoder.image_token
    of_text, of_images = ask_llama_cpp(
        [
            job | {"text": [rendered(parts, question) for question in QUESTIONS]},
            job | mmproj | {"text": rendered(parts, image_token + asked)},
        ]
    )
    for examples, found in ((texts, of_text), (seen, of_images)):
        own = greedy_answers(parts, examples, TOKENS)
        gaps = [
            first_difference(parts, one, answer["greedy"], answer["ended"])
            for one, answer in zip(own, found["answers"], strict=True)
        ]
        near = [f"{gap:.2g}" for gap in gaps if gap]
        same, words = gaps.count(0.0), sum(len(ids) for ids, _, _ in own)
        print(f"{same} of {len(own)} answers ({words} tokens) are the same; parted by nats: {near}")
        assert max(gaps) < 0.01  # nearer tokens may change places


def saved(image, file):
    """Save an image at the tower's size."""
    image.open().convert("RGB").resize((224, 224), PIL.Image.Resampling.BICUBIC).save(file)
    return file


def rendered(parts, question):
    encoder = parts.encoder
    turns = [{"role": "user", "content": question}]
    text = encoder.template.render(turns, add_generation_prompt=True)
    return text.replace(encoder.image_token, "<__media__>")
