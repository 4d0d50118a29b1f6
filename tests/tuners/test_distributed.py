"""Tuners under data parallelism and sharding: two processes find one process's gradients."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM
from varifocal.tuners import ImageLoraConfig, MixLoraConfig, MMAConfig

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(2))
modality = torch.tensor([0, 1])[:, None].expand(2, 7)
sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 61}
CONFIGS = {
    "mma": lambda: MMAConfig(dropout=0.0),
    "mma_base": lambda: MMAConfig(dropout=0.0, text_route="base"),
    "mixlora_base": lambda: MixLoraConfig(
        num_factors=6, rank=2, dropout=0.0, lora_alpha=2.0, text_route="base"
    ),
    "lora_base": lambda: ImageLoraConfig(target_modules=["q_proj", "v_proj"]),
}


def build():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).double()
    model = get_peft_model(base, CONFIGS[sys.argv[2]]()).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def gradients(model, rows):
    model(input_ids=ids[rows], modality_ids=modality[rows]).logits.square().mean().backward()
    return {
        name.removeprefix("module."): getattr(p.grad, "full_tensor", lambda g=p.grad: g)()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


expected = gradients(build(), slice(None))
model = build()
if sys.argv[1] == "ddp":
    model = DistributedDataParallel(model)
else:
    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert type(next(model.parameters())).__name__ == "DTensor"
    if sys.argv[1] == "fsdp2-checkpointed":
        model.get_base_model().activation_checkpointing_enable()
found = gradients(model, slice(rank, rank + 1))
assert found.keys() == expected.keys()
for name in expected:
    torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12, msg=name)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["mma", "mma_base", "mixlora_base", "lora_base"])
@pytest.mark.parametrize("way", ["ddp", "fsdp2", "fsdp2-checkpointed"])
def test_two_processes_find_the_same_gradients(way, tuner, tmp_path):
    """One of them holds a row of text alone, which teaches the `_base` tuners nothing."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run([*launcher, str(script), way, tuner], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
