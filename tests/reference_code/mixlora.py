"""MixLoRA's own linears and routers next to a run that was imported from them, on random weights.

    python tests/reference_code/mixlora.py REPOSITORY

REPOSITORY is a git repository of VT-NLP/MixLoRA that holds the commit below. Its linears are put
into transformers' LLaMA, whose logits, in a forward pass and in decoding, and gradients are
compared; of the rest of its model, which is LLaMA's and LLaVA's, nothing runs. It needs `einops`;
what it imports of an old PEFT and these checks do not need is replaced.

Dimensions: E factors, r chosen ones.
"""

import importlib
import json
import sys
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from repository import compute_in_float64, gradient_gap, stand_in, unpack

import varifocal as vf
from tiny import byte_tokenizer, llama_config
from varifocal.assemble import open_run
from varifocal.models.layouts.mixlora import mixlora_rules, read_mixlora_sizes

COMMIT = "af5cc3f4b42eada1e41691022a500e5711ab58e1"
E, R, ALPHA = 6, 3, 12
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-12)}  # of logits, of gradients
SIDE, PATCH, C = 28, 14, 16
PREFIX = "base_model.model."


def import_theirs(folder: Path) -> Any:
    """Import the linears out of the unpacked folder."""
    for name in ("llava", "llava.peft_cmoa", "llava.peft_cmoa.mixture"):
        stand_in(name, __path__=[str(folder / name.replace(".", "/"))])
    stand_in("peft.import_utils", is_bnb_available=bool, is_bnb_4bit_available=bool)
    names = ("COMMON_LAYERS_PATTERN", "_freeze_adapter", "_get_submodules", "ModulesToSaveWrapper")
    mapping = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
    for name in (*names, mapping):
        if not hasattr(peft.utils, name):
            setattr(peft.utils, name, None)
    peft.utils.transpose = lambda weight, other: weight.T if other else weight
    kinds = Enum("PeftType", {"LORA": "LORA", "CMOALORA": "CMOALORA"})
    stand_in("peft.utils.config", PeftConfig=object, PeftType=kinds)
    return importlib.import_module("llava.peft_cmoa.cmoa_lora")


def put_in(llama: nn.Module, theirs: Any, condition: str) -> None:
    """Replace the linears of the blocks by theirs, with the same weights and random factors."""
    torch.manual_seed(3)
    for name, module in list(llama.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in name:
            sizes = module.in_features, module.out_features
            options = {"r": R, "lora_alpha": ALPHA, "n_experts": E, "cond_type": condition}
            linear = theirs.Linear("default", *sizes, **options, bias=False)
            linear.weight.data.copy_(module.weight)
            for own, parameter in linear.named_parameters():
                if own != "weight":
                    nn.init.normal_(parameter, std=0.1)
            parent, _, leaf = name.rpartition(".")
            setattr(llama.get_submodule(parent), leaf, linear)


def save_bases(folder: Path) -> None:
    """Write a LLaMA and a CLIP."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "llama")
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tokenizer)).save_pretrained(folder / "llama")
    sizes = {"hidden_size": C, "intermediate_size": 24, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder / "clip")
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    processor.save_pretrained(folder / "clip")


def save_checkpoint(llama: nn.Module, projector: nn.Linear, bases: Path, folder: Path) -> None:
    """Write what their training saves."""
    folder.mkdir()
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in llama.state_dict().items()}
    own = projector.state_dict()
    tensors |= {f"{PREFIX}model.mm_projector.{name}": tensor for name, tensor in own.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    page = {"model_type": "llava_cmoa", "_name_or_path": str(bases / "llama")}
    page |= {"mm_vision_tower": str(bases / "clip"), "mm_vision_select_layer": -2}
    (folder / "config.json").write_text(json.dumps(page))


def rows(placeholder: int) -> dict[str, dict[str, Tensor]]:
    """A text row and an image row, as the run takes them."""
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 200, (1, 11), generator=random)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=random)
    images = torch.full((1, (SIDE // PATCH) ** 2), placeholder)
    shown = torch.cat([ids[:, :1], images, ids[:, 1:]], dim=1)
    return {"text": {"input_ids": ids}, "image": {"input_ids": shown, "pixel_values": pixels}}


def embed(llama: Any, projector: nn.Linear, clip: Any, row: dict[str, Tensor]) -> Tensor:
    """Look words up, and put the projected patches between the first and the second."""
    ids = row["input_ids"]
    words = llama.get_input_embeddings()(ids.clamp(max=llama.config.vocab_size - 1))
    if "pixel_values" not in row:
        return words
    pixels = row["pixel_values"].to(projector.weight.dtype)
    states = clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    tokens = F.linear(states, projector.weight, projector.bias)
    return torch.cat([words[:, :1], tokens, words[:, 1 + tokens.shape[1] :]], dim=1)


def decode(model: Any, prompt: dict[str, Tensor], later: dict[str, Tensor]) -> Tensor:
    """Return the logits of a prompt's last token and of later tokens, read one at a time."""
    result = model(**prompt, use_cache=True)
    logits = [result.logits[:, -1:]]
    for token in range(next(iter(later.values())).shape[1]):
        step = {name: tensor[:, token : token + 1] for name, tensor in later.items()}
        result = model(**step, past_key_values=result.past_key_values, use_cache=True)
        logits.append(result.logits)
    return torch.cat(logits, dim=1)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest gap by the largest number; ours may have logits of more words."""
    return float((found[..., : expected.shape[-1]] - expected).abs().max() / expected.abs().max())


def compare(run: vf.Run, llama: Any, projector: nn.Linear, clip: Any, condition: str) -> bool:
    """Print the largest gaps of logits, in a forward pass and in decoding, and of gradients."""
    _, parts = open_run(run.root)
    trained = {f"{PREFIX}{n}": p for n, p in llama.named_parameters() if "lora" in n or "cmoa" in n}
    trained |= {f"{PREFIX}model.mm_projector.{n}": p for n, p in projector.named_parameters()}
    rules = mixlora_rules(read_mixlora_sizes(trained, "their model"), R)
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_("mixlora_" in name or "modules_to_save" in name)
    fine = True
    for dtype, (bound, of_gradients) in BOUNDS.items():
        if dtype == torch.float64:
            for model in (parts.model, llama):
                compute_in_float64(model)
            projector.double()
            clip.double()
        for name, row in rows(parts.processor.image_token_id).items():
            given = {key: t.to(dtype) if t.is_floating_point() else t for key, t in row.items()}
            with torch.enable_grad():
                words = embed(llama, projector, clip, row)
                expected = llama(inputs_embeds=words).logits
                found = parts.model(**given).logits[..., : expected.shape[-1]]
                apart, number = gradient_gap(trained, parts.model, (expected, found), rules)
            ids = given.pop("input_ids")
            prompt, later = {"input_ids": ids[:, :-3], **given}, {"input_ids": ids[:, -3:]}
            steps = decode(parts.model, prompt, later)
            of_words = [{"inputs_embeds": part} for part in (words[:, :-3], words[:, -3:])]
            gap = distance(found, expected)
            decoded = distance(steps, decode(llama, *of_words))
            passed = max(gap, decoded) < bound and apart < of_gradients
            fine = fine and passed
            told = (
                f"gap {gap:.1e}, decoding {decoded:.1e}, gradients of {number} tensors {apart:.1e}"
            )
            verdict = "passed" if passed else "FAILED"
            print(f"{condition}, {name} row, {dtype}: {told}, {verdict}")  # noqa: T201
    return fine


@torch.no_grad()
def main(repository: Path) -> bool:
    """Import a checkpoint of either kind and compare a text row and an image row of each."""
    fine = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        theirs = import_theirs(unpack(repository, COMMIT, folder / "code"))
        save_bases(folder)
        for condition in ("input", "input_lora_a_param"):
            clip = CLIPVisionModel.from_pretrained(folder / "clip")
            llama = LlamaForCausalLM.from_pretrained(folder / "llama")
            put_in(llama, theirs, condition)
            llama.eval()
            projector = nn.Linear(C, llama.config.hidden_size)
            save_checkpoint(llama, projector, folder, folder / condition)
            out, options = folder / f"run-{condition}", {"rank": R, "lora_alpha": ALPHA}
            run = vf.import_checkpoint(
                folder / condition, "mixlora", out, **options, dtype="float32"
            )
            fine = compare(run, llama, projector, clip, condition) and fine
    return fine


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(0 if main(Path(sys.argv[1])) else 1)
