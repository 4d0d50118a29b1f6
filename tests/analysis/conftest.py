"""A tiny language model, questions of three skills, and runs with adapters of several kinds."""

import json

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from tiny import byte_tokenizer, llama_config
from varifocal.tuners import LoraExpertsConfig, MixLoraConfig, MMAConfig
from varifocal.writing import MARK

SKILLS = {"opposites": ("not {}?", "ab"), "sums": ("1 + {}?", "23"), "echoes": ("say {}", "xy")}
LORA = {"r": 2, "lora_alpha": 4, "init_lora_weights": False}
ADAPTERS = {
    "lora": lambda: LoraConfig(target_modules=["q_proj", "up_proj"], **LORA),
    "mma": lambda: MMAConfig(bottleneck_dim=2, router_temperature=0.5),
    "mma-unrouted": lambda: MMAConfig(bottleneck_dim=2, router=False),
    "mixlora": lambda: MixLoraConfig(num_factors=4, rank=2, target_modules=["q_proj", "up_proj"]),
    "lora_experts": lambda: LoraExpertsConfig(num_experts=3, target_modules=["q_proj", "up_proj"]),
}


def write_questions(folder, per_skill=5):
    """Questions in ScienceQA's layout; `echoes` has fewer than the others."""
    problems = {}
    for skill, (question, letters) in SKILLS.items():
        for number in range(per_skill - (skill == "echoes")):
            problems[str(len(problems))] = {
                "question": question.format(letters[number % 2] * (1 + number)),
                "choices": list(letters),
                "answer": number % 2,
                "hint": "",
                "image": None,
                "grade": "grade1",
                "subject": "natural science",
                "skill": skill,
                "lecture": "",
                "solution": "",
                "split": "train",
            }
    folder.mkdir()
    (folder / "problems.json").write_text(json.dumps(problems))
    splits = {"train": list(problems), "val": [], "test": list(problems)[:1]}
    (folder / "pid_splits.json").write_text(json.dumps(splits))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def language(tmp_path_factory):
    """A directory with a Llama of three layers and its tokenizer."""
    directory = tmp_path_factory.mktemp("language")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = llama_config(
        tokenizer,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def make_run(tmp_path, language):
    """Make a run directory: `make_run("lora")`; with None, one without an adapter."""

    def make(kind):
        root = tmp_path / f"run-{kind}"
        write_questions(tmp_path / f"book-{kind}")
        book = {"path": str(tmp_path / f"book-{kind}"), "format": "scienceqa", "split": "train"}
        page = {
            "model": {"language_model": str(language), "dtype": "float32"},
            "tuner": {"type": (kind or "lora").partition("-")[0]},
            "data": {"train": [book], "max_length": 160},
        }
        root.mkdir()
        (root / MARK).touch()
        (root / "recipe.yaml").write_text(yaml.safe_dump(page))
        if kind:
            torch.manual_seed(1)
            base = AutoModelForCausalLM.from_pretrained(language)
            model = get_peft_model(base, ADAPTERS[kind]())
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(root / "adapter")
        return root

    return make


@pytest.fixture
def gpt2():
    """GPT-2 with a LoRA, wholly in float64: its norms do not round to float32 as Llama's do."""
    torch.manual_seed(2)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 40}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    base = GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.4)).double()
    lora = LoraConfig(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **LORA)
    return get_peft_model(base, lora).eval()
