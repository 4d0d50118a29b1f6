"""Tiny runs of every tuner, written as training writes them, with adapters that do something."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import PIL.Image
import pytest
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from languages import OWN_END, save_language
from varifocal.assemble import assemble
from varifocal.recipe import Recipe
from varifocal.run import RunDirectory
from varifocal.training.tuner import attach_tuner

SIDE = 28


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def parts_directory(tmp_path_factory):
    """A directory with `language`, `clip` and `siglip`; nobody changes it."""
    directory = tmp_path_factory.mktemp("parts")
    save_language(directory / "language")
    vit = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    vit |= {"image_size": SIDE, "patch_size": 7, "intermediate_size": 24}
    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**vit)).save_pretrained(directory / "clip")
    SiglipVisionModel(SiglipVisionConfig(**vit)).save_pretrained(directory / "siglip")
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(
        directory / "clip"
    )
    SiglipImageProcessorPil(size=square).save_pretrained(directory / "siglip")
    return directory


@pytest.fixture(scope="session")
def make_run(parts_directory, tmp_path_factory):
    """Write a run: `make_run({"type": "lora"}, tower="siglip")`."""

    def make(tuner, tower="clip", connector=None, language=None, **page):
        model = {
            "language_model": str(language or parts_directory / "language"),
            "vision_tower": str(parts_directory / tower) if tower else None,
            "connector": (connector or {"type": "mlp2x_gelu"}) if tower else None,
            "dtype": page.pop("dtype", "float32"),
            "image_preparation": page.pop("image_preparation", None),
        }
        recipe = Recipe.model_validate({"seed": 5, "model": model, "tuner": tuner, **page})
        parts = assemble(recipe)
        run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "run")
        model = attach_tuner(parts.base, recipe.tuner, base_fingerprint=parts.fingerprint)
        torch.manual_seed(7)
        for parameter in model.parameters():
            if parameter.requires_grad and recipe.tuner.type not in ("full", "none"):
                nn.init.normal_(parameter, std=0.1)
        if recipe.tuner.type == "full":
            model.save_pretrained(run.model)
            parts.processor.save_pretrained(run.model)
        else:
            model.save_pretrained(run.adapter, save_embedding_layers=False)
        run.write_recipe(recipe.dump_yaml())
        return run

    return make


LLAMA_NODE = Path(__file__).parents[2] / ".venv" / "llama.cpp" / "node_modules"


@pytest.fixture(scope="session")
def llama_node():
    """What `llama_node.cjs` needs in its environment: where llama.cpp from npm is."""
    modules = Path(os.environ.get("LLAMA_NODE", LLAMA_NODE))
    if not modules.is_dir() or not shutil.which("node"):
        pytest.skip("needs llama.cpp from npm, which `make test-all` installs")
    return os.environ | {"LLAMA_NODE": str(modules)}


@pytest.fixture(scope="session")
def ask_llama_cpp(llama_node, tmp_path_factory):
    """Ask llama.cpp about GGUF files; `llama_cpp.cjs` tells what goes in and comes out."""
    answers = tmp_path_factory.mktemp("llama") / "answers.json"

    def ask(jobs):
        done = subprocess.run(
            ["node", Path(__file__).with_name("llama_cpp.cjs")],
            input=json.dumps(jobs),
            env=llama_node | {"LLAMA_ANSWERS": str(answers)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(answers.read_text())

    return ask


BLIND_MMA = {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": False}


@pytest.fixture(scope="session")
def mma_run(make_run):
    """An MMA run on a CLIP graft whose connector is LLaVA's; nobody changes it."""
    return make_run(BLIND_MMA, data={"system_prompt": "Be brief."})


@pytest.fixture
def image(tmp_path):
    """An image's file, 40 x 30 pixels."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8, generator=generator)
    PIL.Image.fromarray(noise.numpy()).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def save_tied(tmp_path):
    """A language model whose head is its embedding."""
    save_language(tmp_path / "tied", tie_word_embeddings=True)
    return tmp_path / "tied"


@pytest.fixture(scope="session")
def save_own_end(tmp_path_factory):
    """A language model whose template ends turns with another token than the tokenizer's eos."""
    directory = tmp_path_factory.mktemp("ends") / "own"
    save_language(directory, template=OWN_END, special=["<|eot|>"])
    return directory


@pytest.fixture
def save_gpt2(tmp_path):
    """A GPT-2, whose linears hold [inputs, outputs]."""
    save_language(tmp_path / "gpt2")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    old = LlamaConfig.from_pretrained(tmp_path / "gpt2")
    ends = {name: getattr(old, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=old.vocab_size, **sizes, **ends)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def save_with(tmp_path):
    """A language model that no GGUF is written of: `save_with("rope")`."""

    def save(change):
        rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
        changes = {"rope": {"rope_parameters": rope}, "kind": {}}.get(change)
        if changes is None:
            changes = {"cuts": pre_tokenizers.ByteLevel(add_prefix_space=True)}
        save_language(tmp_path / change, **changes)
        if change == "kind":
            config = MistralConfig(**LlamaConfig.from_pretrained(tmp_path / change).to_dict())
            MistralForCausalLM(config).save_pretrained(tmp_path / change)
        return tmp_path / change

    return save


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub, in order."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "create_repo", lambda name, **how: asked.append((name, how["private"]))
    )

    def upload_folder(*, repo_id, folder_path, commit_message):
        asked.append((repo_id, sorted(p.name for p in folder_path.iterdir())))
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    return asked
