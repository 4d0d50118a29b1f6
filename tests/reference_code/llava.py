"""LLaVA's own model and saving code next to a run that was imported from it, on random weights.

    python tests/reference_code/llava.py REPOSITORY

REPOSITORY is a git repository of haotian-liu/LLaVA that holds the commit below; MLAN's code is made
of it. Its model, projectors, image encoder and the functions with which `train.py` chooses LoRA's
linears and a checkpoint's tensors run on this transformers and PEFT, newer than those that it
asks for; a whole model's file, which its trainer would write, is written here. Of each kind of
checkpoint (a projector alone, a LoRA, a whole model) and of either projector, logits and the
gradients of all tensors that are trained here are compared.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from repository import compute_in_float64, gradient_gap, stand_in, unpack

import varifocal as vf
from tiny import byte_tokenizer, llama_config
from varifocal.assemble import open_run
from varifocal.models.layouts.rule import Rule

COMMIT = "c121f0432da27facab705978f83c4ada465e46fd"
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-12)}  # of logits, of gradients
SIDE, PATCH, C = 28, 14, 16
RANK, ALPHA = 4, 8
PREFIX = "base_model.model."
IMAGE = -200  # their placeholder, one for all patches


def import_theirs(folder: Path) -> Any:
    """Import `train.py`, and with it the model, out of the unpacked folder."""
    transformers.CLIPImageProcessor = CLIPImageProcessorPil
    stand_in("llava.train.llava_trainer", LLaVATrainer=object)
    assert (folder / "llava" / "train" / "train.py").is_file()
    train: Any = importlib.import_module("llava.train.train")
    train.maybe_zero_3 = lambda tensor, **options: tensor.detach().clone()  # of DeepSpeed's shards
    return train


def save_bases(folder: Path) -> None:
    """Write a LLaMA and a CLIP."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "llama")
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tokenizer)).save_pretrained(folder / "llama")
    sizes: dict[str, Any] = {"hidden_size": C, "intermediate_size": 24, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder / "clip")
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    processor.save_pretrained(folder / "clip")


def build_theirs(train: Any, bases: Path, kind: str, projector: str) -> Any:
    """Build their model in `train`'s order, and put random numbers where it was trained."""
    settings = train.ModelArguments(
        vision_tower=str(bases / "clip"), mm_vision_select_layer=-2, mm_projector_type=projector
    )
    model = train.LlavaLlamaForCausalLM.from_pretrained(bases / "llama")
    if kind == "lora":
        targets = train.find_all_linear_names(model)
        options = {"lora_dropout": 0.05, "bias": "none", "task_type": "CAUSAL_LM"}
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **options),
        )
    model.get_model().initialize_vision_modules(model_args=settings, fsdp=None)
    if kind == "projector":
        model.requires_grad_(requires_grad=False)
        model.get_model().mm_projector.requires_grad_(requires_grad=True)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def save_theirs(train: Any, model: Any, folder: Path, kind: str) -> None:
    """Write what the end of their `train` writes."""
    folder.mkdir()
    if kind == "lora":
        lora = train.get_peft_state_maybe_zero_3(model.named_parameters(), "none")
        others = train.get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
        model.config.save_pretrained(folder)
        model.save_pretrained(folder, state_dict=lora)
        torch.save(others, folder / "non_lora_trainables.bin")
        return

    def save(out: str, state_dict: dict[str, Tensor]) -> None:
        model.config.save_pretrained(out)
        tower = "vision_tower.vision_tower."  # whose names had one more word in their transformers
        named = {
            name.replace(f"{tower}vision_model.", tower).replace(tower, f"{tower}vision_model."): t
            for name, t in state_dict.items()
        }
        torch.save(named, Path(out, "pytorch_model.bin"))
        byte_tokenizer().save_pretrained(out)

    alone = kind == "projector"
    args = SimpleNamespace(tune_mm_mlp_adapter=alone, local_rank=-1, should_save=True)
    trainer = SimpleNamespace(args=args, model=model, deepspeed=False, _save=save)
    train.safe_save_model_for_hf_trainer(trainer, str(folder))


def rules_of(trained: dict[str, nn.Parameter]) -> list[Rule]:
    """Say which of the run's tensors each of theirs is."""
    rules = []
    for name in trained:
        if "mm_projector" in name:
            place = name.split("mm_projector.")[1]
            place = place if place.count(".") else f"0.{place}"
            rules.append(Rule(f"{PREFIX}connector.local.{place}", (name,)))
        else:
            rules.append(Rule(f"{PREFIX}language_model.{name.removeprefix(PREFIX)}", (name,)))
    return rules


def rows(placeholder: int) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A text row and an image row, as they take it (an empty image with text) and as the run."""
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 200, (1, 11), generator=random)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=random)
    patches = torch.full((1, (SIDE // PATCH) ** 2), placeholder)
    one, shown = (
        torch.cat([ids[:, :2], images, ids[:, 2:]], dim=1)
        for images in (torch.tensor([[IMAGE]]), patches)
    )
    text = {"input_ids": ids, "images": torch.zeros_like(pixels)}, {"input_ids": ids}
    image = {"input_ids": one, "images": pixels}, {"input_ids": shown, "pixel_values": pixels}
    return {"text": text, "image": image}


def largest_gradient(trained: dict[str, nn.Parameter], logits: Tensor) -> float:
    """Return the largest number of the gradients that logits give these tensors."""
    tensors = list(trained.values())
    gradients = torch.autograd.grad(logits.square().sum(), tensors, allow_unused=True)
    return max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)


def compare(run: vf.Run, theirs: Any, title: str) -> bool:
    """Print the largest gap of two logits, and of two gradients, by the largest, for each row."""
    _, parts = open_run(run.root)
    trained = {
        name.replace(".default", ""): parameter
        for name, parameter in theirs.named_parameters()
        if "lora_" in name or "mm_projector" in name
    }
    rules, fine = rules_of(trained), True
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_("lora_" in name or "modules_to_save" in name)
    for dtype, (bound, of_gradients) in BOUNDS.items():
        if dtype == torch.float64:
            for model in (parts.model, theirs):
                compute_in_float64(model)
        for name, row in rows(parts.processor.image_token_id).items():
            their_row, own_row = (
                {key: t.to(dtype) if t.is_floating_point() else t for key, t in side.items()}
                for side in row
            )
            expected = theirs(**their_row).logits
            found = parts.model(**own_row).logits[..., : expected.shape[-1]]
            gap = ((found - expected).abs().max() / expected.abs().max()).item()
            if found.requires_grad:
                apart, number = gradient_gap(trained, parts.model, (expected, found), rules)
            else:  # nothing that is trained has part in a text row
                apart, number = largest_gradient(trained, expected), 0
            passed = gap < bound and apart < of_gradients
            fine = fine and passed
            told = f"gap {gap:.1e}, gradients of {number} tensors {apart:.1e}"
            verdict = "passed" if passed else "FAILED"
            print(f"{title}, {name} row, {dtype}: {told}, {verdict}")  # noqa: T201
    return fine


def main(repository: Path) -> bool:
    """Import a checkpoint of every kind and compare a text row and an image row of each."""
    fine = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = import_theirs(unpack(repository, COMMIT, folder / "code"))
        save_bases(folder)
        for kind in ("projector", "lora", "whole"):
            for projector in ("linear", "mlp2x_gelu"):
                name = f"{kind}-{projector}"
                theirs = build_theirs(train, folder, kind, projector)
                save_theirs(train, theirs, folder / name, kind)
                base = None if kind == "whole" else str(folder / "llama")
                run = vf.import_checkpoint(
                    folder / name,
                    "llava",
                    folder / f"run-{name}",
                    language_model=base,
                    dtype="float32",
                )
                fine = compare(run, theirs, f"{kind}, {projector}") and fine
    return fine


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(0 if main(Path(sys.argv[1])) else 1)
