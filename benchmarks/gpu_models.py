"""Models, batches and plans of known shapes for `gpu_check`: random weights, no file is read.

Legend: B rows, T tokens of a row.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    PreTrainedModel,
)

from varifocal.data.encoding.encoder import Encoded
from varifocal.data.rows.packing import Collator
from varifocal.models.connector import build_connector
from varifocal.models.families.base import family_of
from varifocal.models.grafted import graft
from varifocal.models.loss import LossKernel, supervised_loss
from varifocal.models.published_configs import PUBLISHED
from varifocal.models.vision import build_tower
from varifocal.planning.memory import count_weights, parts_of_peak
from varifocal.planning.tracing import switch_checkpointing, trace_step
from varifocal.recipe import LoraSection, MixLoraSection, MMASection, TunerSection, load_recipe
from varifocal.training.cost import Spent, peak_memory_gib
from varifocal.training.flops import FlopFormula
from varifocal.training.train import compile_layers
from varifocal.training.tuner import attach_tuner

GIB = 2**30
TUNERS: dict[str, TunerSection] = {
    "mma": MMASection(dropout=0.0),
    "lora": LoraSection(rank=8, dropout=0.0),
    "mixlora": MixLoraSection(dropout=0.0),
}


@dataclass(frozen=True)
class Scale:
    """A model's shape, and a step's.

    Attributes:
        language: values of a LlamaConfig.
        tower: values of a CLIPVisionConfig.
        rows: B, packed rows a step.
        row_length: T.
        sample_length: tokens of each sample; they fill the rows.
    """

    language: Mapping[str, Any]
    tower: Mapping[str, Any]
    rows: int = 4
    row_length: int = 512
    sample_length: int = 256


_CLIP = PUBLISHED["openai/clip-vit-large-patch14"].values
_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
_SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_SMALL_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SCALES = {
    "llama-7b": Scale(PUBLISHED["huggyllama/llama-7b"].values, _CLIP),
    "smollm2-135m": Scale(_SMOLLM2, _CLIP, rows=16),
}
SMALL = Scale(_SMALL, _SMALL_TOWER, rows=2, row_length=64, sample_length=32)


@dataclass(frozen=True)
class Way:
    """How a step is taken.

    Attributes:
        tuner: of `TUNERS`.
        rows: B; None for the scale's.
        compiled: whether each decoder layer is compiled.
        checkpointing: whether layers run again in the backward pass.
        quantization: `nf4` or None.
        attention: transformers' name.
        dtype: of the frozen weights.
        autocast: as `training.bf16` has it.
        loss_chunk: as `supervised_loss` takes it.
        loss_kernel: as `supervised_loss` takes it.
    """

    tuner: str = "mma"
    rows: int | None = None
    compiled: bool = False
    checkpointing: bool = False
    quantization: str | None = None
    attention: str = "sdpa"
    dtype: torch.dtype = torch.bfloat16
    autocast: bool = True
    loss_chunk: int | None = 1024
    loss_kernel: LossKernel | None = None


def build(scale: Scale, way: Way, device: str) -> tuple[nn.Module, PreTrainedModel]:
    """Build a graft with its tuner on a device, its gradients and knobs as a way says.

    Returns:
        the model to train, and the base model inside.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = {"dtype": way.dtype, "attn_implementation": way.attention}
    with torch.device(device):
        language = AutoModelForCausalLM.from_config(LlamaConfig(**scale.language), **options)
        vision = cast(Any, CLIPVisionModel)._from_config(CLIPVisionConfig(**scale.tower), **options)
        tower = build_tower(vision)
        width = language.config.hidden_size
        connector = build_connector({"type": "cls_pyramid"}, tower, width)
        base = graft(language, tower, connector, image_token_id=language.config.vocab_size)
    base.requires_grad_(False)
    if way.quantization and device != "meta":
        quantise(language, way.dtype, device)
        cast(Any, base).is_loaded_in_4bit = True  # PEFT asks for it
    model = attach_tuner(base, TUNERS[way.tuner])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("mma_up" in name or "lora_B" in name or "_b." in name):
            nn.init.normal_(parameter, std=0.01)  # off zero, so that every gradient flows
    if way.checkpointing and device != "meta":
        cast(Any, base).activation_checkpointing_enable({"use_reentrant": False})
    if way.compiled and device != "meta":
        compile_layers(base)
    return model.train(), base


def quantise(language: Any, dtype: torch.dtype, device: str) -> None:
    """Hold a language model's linears, but for the head, in NF4 with double quantisation."""
    import bitsandbytes as bnb

    for name, linear in list(language.get_decoder().named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        shape = linear.in_features, linear.out_features
        small = bnb.nn.Linear4bit(
            *shape, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        weight = linear.weight.detach()
        small.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        parent, _, leaf = name.rpartition(".")
        setattr(language.get_decoder().get_submodule(parent), leaf, small.to(device))
    gc.collect()


def batch_of(scale: Scale, way: Way, base: PreTrainedModel, device: str) -> dict[str, Tensor]:
    """Make a batch of full rows; every second sample has an image, three fifths are answer."""
    family = family_of(base.config)
    assert family is not None
    images = family.meta_images(base)
    random = np.random.default_rng(0)
    length, count = scale.sample_length, 0
    rows = []
    for _ in range(way.rows or scale.rows):
        samples = []
        for _ in range(scale.row_length // length):
            has_image, count = count % 2, count + 1
            ids = random.integers(0, scale.language["vocab_size"], length, dtype=np.int32)
            ids[1 : 1 + images.tokens * has_image] = images.token_id
            prompt = np.arange(length) < 2 * length // 5
            held = (cast(Any, None),) * has_image
            samples.append(Encoded(ids, prompt, modality=has_image, images=held))
        rows.append(samples)

    def load(batch: Any) -> Mapping[str, Tensor]:
        assert images.load is not None
        shapes = images.load(batch)
        if device == "meta":
            return shapes
        return {name: torch.randn(each.shape, dtype=each.dtype) for name, each in shapes.items()}

    batch = Collator(pad_id=0, row_length=scale.row_length, load_images=load)(rows)
    if device == "meta":  # whole numbers are real in a trace
        return batch
    return {name: each.to(device) for name, each in batch.items()}


class Stepper:
    """Takes training steps of one model on one batch."""

    def __init__(self, scale: Scale, way: Way, device: str) -> None:
        self.way, self.device = way, device
        self.model, self.base = build(scale, way, device)
        self.batch = batch_of(scale, way, self.base, device)
        trained = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss(self) -> Tensor:
        """Compute the batch's loss."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.way.autocast):
            return supervised_loss(
                self.model, self.batch, chunk=self.way.loss_chunk, kernel=self.way.loss_kernel
            )

    def __call__(self) -> float:
        """Take a step; return its seconds."""
        wait(self.device)
        began = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait(self.device)
        return time.perf_counter() - began

    def flops(self) -> tuple[int, int]:
        """Count a step's operations that are needed, and those on padding and masked pairs.

        What checkpointing computes again is not needed; it is switched off for good.
        """
        cast(Any, self.base).activation_checkpointing_disable()
        formula = FlopFormula.of(self.base)
        token, spent = cast(Any, self.base).config.image_token_id, Spent()
        spent.add(self.batch, formula, token, self.way.loss_chunk)
        spent.add_passes(len(self.batch.get("pixel_values", ())), formula)
        return spent.flops, spent.flops_masked


def planned_gib(scale: Scale, way: Way) -> dict[str, float]:
    """Predict a step's memory as `varifocal plan` does, by part; the framework is left out."""
    model, base = build(scale, replace(way, attention="sdpa"), "meta")
    settings = {"model.quantization": way.quantization, "training.loss_chunk": way.loss_chunk}
    settings["model.dtype"] = str(way.dtype).removeprefix("torch.")
    recipe = load_recipe("lavin-7b-scienceqa", settings, check_paths=False)
    autocast = torch.bfloat16 if way.autocast else None
    if way.checkpointing:
        switch_checkpointing(base, True, autocast)
    step = trace_step(model, base, batch_of(scale, way, base, "meta"), autocast=autocast)
    parts = parts_of_peak(count_weights(model, base, recipe), step, overhead=0.0, num_devices=1)
    return {name: size / GIB for name, size in parts.items() if size}


def wait(device: str) -> None:
    """Let a GPU finish."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def free(device: str) -> None:
    """Give back what an entry held, and forget what was compiled."""
    torch._dynamo.reset()
    forget_peak(device)


def forget_peak(device: str) -> None:
    """Let the most that is held begin at what is held now."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def used_gib(device: str) -> dict[str, float]:
    """Read the most that tensors and the allocator have held, and what the GPU holds now."""
    found = {"peak_memory_gib": peak_memory_gib()}
    if device.startswith("cuda"):
        open_, all_ = torch.cuda.mem_get_info()
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        found["device_gib"] = (all_ - open_) / GIB
    return found


def inside(model: nn.Module) -> Any:
    """Return the model that PEFT has wrapped."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
