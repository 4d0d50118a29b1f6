"""LaVIN's own code next to a run that was imported from it, on random weights.

    python tests/reference_code/lavin.py REPOSITORY

REPOSITORY is a git repository of luogen1996/LaVIN that holds the commit below; its files are
unpacked into a temporary folder and run there. It has no licence, so none of it stands here, and CI
does not run this. Libraries that it imports and that these checks do not need are replaced by empty
ones; its half precision is left out, and in the comparison in float64 whatever either side computes
in float32. The image encoder has the 1,024 channels that its code has built in. Logits and the
gradients of all trained tensors are compared; its decoding is right for the first token alone, and
these are that token's logits.

Dimensions: T tokens, D width of the language model, C of the image encoder.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from repository import compute_in_float64, gradient_gap, stand_in, unpack

import varifocal as vf
from tiny import byte_tokenizer, llama_config
from varifocal.assemble import open_run
from varifocal.models.layouts.lavin import lavin_rules

COMMIT = "dd0a1bfcfd6dd002f6cdc7113366b53957c927a6"
D, C, HEADS, LAYERS, BLOCKS, SIDE, PATCH = 32, 1024, 4, 2, 4, 28, 14
TEMPERATURE = 5.0
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-12)}  # of logits, of gradients


def import_theirs(folder: Path) -> tuple[Any, Any, Any]:
    """Import the language model, the adapters and CLIP out of the unpacked folder."""
    parallel = ("ParallelEmbedding", "RowParallelLinear", "ColumnParallelLinear")
    stand_in("fairscale")
    for name in ("nn", "nn.model_parallel", "nn.model_parallel.initialize"):
        stand_in(f"fairscale.{name}")
    stand_in("fairscale.nn.model_parallel.layers", **dict.fromkeys(parallel, nn.Module))
    for name in ("timm", "timm.models"):
        stand_in(name)
    stand_in("timm.models.layers", DropPath=nn.Identity)
    stand_in("sentencepiece", SentencePieceProcessor=object)
    stand_in("clip", __path__=[str(folder / "clip")], load=lambda name: (Backbone(), None))
    names = "clip.model", "lavin.mm_adapter", "lavin.model"
    clip_model, adapters, model = (importlib.import_module(name) for name in names)
    return model, adapters, clip_model


class Backbone(nn.Module):
    """What `clip.load` gives: an image encoder of few blocks, and a text encoder to be deleted."""

    def __init__(self) -> None:
        super().__init__()
        theirs: Any = sys.modules["clip.model"]
        self.visual = theirs.VisionTransformer(SIDE, PATCH, C, BLOCKS, C // 64, 8)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.visual(images)


def build_theirs(model: Any, adapters: Any, vocabulary: int) -> nn.Module:
    """Build their model with its adapters, all weights random, at a size where outputs differ."""
    torch.manual_seed(0)
    sizes = {"dim": D, "n_layers": LAYERS, "n_heads": HEADS, "multiple_of": 16}
    theirs = model.Transformer(
        model.ModelArgs(**sizes, vocab_size=vocabulary, max_seq_len=64, hidden_proj=128)
    )
    options = {"dim": 8, "s": 1, "t": TEMPERATURE}
    adapters.set_MMAdapter(theirs, "attn", **options)
    adapters.set_Clip_Adapter(theirs.backbone.visual, "router", **options)
    for name, parameter in theirs.named_parameters():
        small = name.startswith("backbone") and "adapter" not in name
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02 if small else 0.3)
    return theirs.eval()


def save_language_model(theirs: nn.Module, folder: Path, vocabulary: int) -> None:
    """Write their language model in transformers' layout, with its order of rotary halves."""
    tensors = theirs.state_dict()
    names = {"wq": "q", "wk": "k", "wv": "v", "wo": "o"}
    state = {
        "model.embed_tokens.weight": tensors["tok_embeddings.weight"],
        "model.norm.weight": tensors["norm.weight"],
        "lm_head.weight": tensors["output.weight"],
    }
    for i in range(LAYERS):
        own, ours = f"layers.{i}", f"model.layers.{i}"
        for short, letter in names.items():
            weight = tensors[f"{own}.attention.{short}.weight"]
            if letter in "qk":
                weight = weight.unflatten(0, (HEADS, -1, 2)).transpose(1, 2).reshape(D, D)
            state[f"{ours}.self_attn.{letter}_proj.weight"] = weight
        for short, kind in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            weight = tensors[f"{own}.feed_forward.{short}.weight"]
            state[f"{ours}.mlp.{kind}_proj.weight"] = weight
        state[f"{ours}.input_layernorm.weight"] = tensors[f"{own}.attention_norm.weight"]
        state[f"{ours}.post_attention_layernorm.weight"] = tensors[f"{own}.ffn_norm.weight"]
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    hidden = state["model.layers.0.mlp.gate_proj.weight"].shape[0]
    sizes = {"hidden_size": D, "intermediate_size": hidden, "rms_norm_eps": 1e-5}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    config = llama_config(tokenizer, **sizes, **heads, num_hidden_layers=LAYERS)
    assert config.vocab_size == vocabulary
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(state)
    llama.save_pretrained(folder)


def save_tower(theirs: nn.Module, folder: Path) -> None:
    """Write their image encoder in transformers' layout."""
    prefix = "backbone.visual."
    own = {n.removeprefix(prefix): t for n, t in theirs.state_dict().items() if prefix in n}
    state = {
        "embeddings.class_embedding": own["class_embedding"],
        "embeddings.patch_embedding.weight": own["conv1.weight"],
        "embeddings.position_embedding.weight": own["positional_embedding"],
    }
    norms = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    parts = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        for short, ours in norms.items():
            state[f"{ours}.{kind}"] = own[f"{short}.{kind}"]
        for j in range(BLOCKS):
            block, layer = f"transformer.resblocks.{j}", f"encoder.layers.{j}"
            for short, ours in parts.items():
                state[f"{layer}.{ours}.{kind}"] = own[f"{block}.{short}.{kind}"]
            joined = own[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", joined, strict=True):
                state[f"{layer}.self_attn.{letter}_proj.{kind}"] = part
    sizes = {"hidden_size": C, "intermediate_size": 4 * C, "num_hidden_layers": BLOCKS}
    sizes |= {"num_attention_heads": C // 64, "image_size": SIDE, "patch_size": PATCH}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes))
    clip.load_state_dict(state)
    clip.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    processor.save_pretrained(folder)


def rows(placeholder: int) -> dict[str, dict[str, Any]]:
    """A text row and an image row, as either side takes it."""
    random = torch.Generator().manual_seed(5)
    text = torch.randint(3, 200, (1, 9), generator=random)
    prefixes = torch.tensor([40, 41, 42]), torch.tensor([43, 44])  # "Image: N/A", "Image: "
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=random)
    made = {}
    for name, prefix in zip(("text", "image"), prefixes, strict=True):
        visual = BLOCKS // 4 if name == "image" else 0
        images = torch.full((visual,), placeholder)
        ids = torch.cat([text[0, :1], prefix, images, text[0, 1:]])[None]
        padded = torch.cat([text, torch.zeros(1, 8, dtype=torch.long)], dim=1)
        made[name] = {"ids": ids, "examples": padded, "pixels": pixels, "prefixes": prefixes}
    return made


def logits_of_theirs(theirs: nn.Module, row: dict[str, Any], *, image: bool) -> Tensor:
    """Run their training forward; the logits [1, T, vocabulary] after the modality token."""
    seen: list[Tensor] = []
    output: Any = theirs.output
    hook = output.register_forward_hook(lambda module, args, result: seen.append(result))
    wanted = row["pixels"] if image else torch.zeros_like(row["pixels"])
    dtype = next(theirs.parameters()).dtype
    nonimage, prefix = row["prefixes"]
    indicator = torch.tensor([int(image)])
    theirs(row["examples"], row["examples"], wanted.to(dtype), prefix, nonimage, indicator)
    hook.remove()
    return seen[0][:, 1 : 1 + row["ids"].shape[1]]


def in_float64(theirs: nn.Module, ours: nn.Module, clip_model: Any) -> None:
    """Let both sides compute in float64 throughout."""
    theirs.double()
    compute_in_float64(ours)
    torch.Tensor.float = torch.Tensor.double
    positions: Any = sys.modules["lavin.model"].precompute_freqs_cis
    theirs.freqs_cis = positions(D // HEADS, 128)
    clip_model.LayerNorm.forward = nn.LayerNorm.forward


def compare(theirs: nn.Module, ours: nn.Module, made: dict[str, Any], dtype: torch.dtype) -> bool:
    """Print the largest gap of two logits, and of two gradients, by the largest, for each row."""
    fine, rules = True, lavin_rules(LAYERS, BLOCKS)
    trained = {name: p for name, p in theirs.named_parameters() if "adapter" in name}
    for name, row in made.items():
        expected = logits_of_theirs(theirs, row, image=name == "image")
        pixels = {"pixel_values": row["pixels"].to(dtype)} if name == "image" else {}
        found = ours(input_ids=row["ids"], **pixels).logits[..., : expected.shape[-1]]
        gap = ((found - expected).abs().max() / expected.abs().max()).item()
        of_gradients, number = gradient_gap(trained, ours, (expected, found), rules)
        passed = gap < BOUNDS[dtype][0] and of_gradients < BOUNDS[dtype][1]
        fine = fine and passed
        told = f"gap {gap:.1e}, of the gradients of {number} tensors {of_gradients:.1e}"
        print(f"{name} row, {dtype}: {told}, {'passed' if passed else 'FAILED'}")  # noqa: T201
    return fine


def main(repository: Path) -> bool:
    torch.Tensor.half = lambda self: self
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        code = unpack(repository, COMMIT, folder / "code")
        model, adapters, clip_model = import_theirs(code)
        vocabulary = len(byte_tokenizer())
        theirs = build_theirs(model, adapters, vocabulary)
        save_language_model(theirs, folder / "llama", vocabulary)
        save_tower(theirs, folder / "clip")
        trained = {n: p.data for n, p in theirs.named_parameters() if "adapter" in n}
        settings = argparse.Namespace(temperature=TEMPERATURE, adapter_scale=1.0)
        torch.save({"model": trained, "args": settings}, folder / "checkpoint.pth")
        names = {n: str(folder / n) for n in ("llama", "clip")}
        run = vf.import_checkpoint(
            folder / "checkpoint.pth",
            "lavin",
            folder / "run",
            language_model=names["llama"],
            vision_tower=names["clip"],
            dtype="float32",
        )
        back = torch.load(vf.export_checkpoint(run, "lavin"), weights_only=True)["model"]
        same = back.keys() == trained.keys() and all(torch.equal(back[n], trained[n]) for n in back)
        print(f"{len(back)} tensors, exported again: {'equal' if same else 'DIFFERENT'}")  # noqa: T201
        _, parts = open_run(run.root)
        for name, parameter in parts.model.named_parameters():
            parameter.requires_grad_("mma_" in name or "modules_to_save" in name)
        made = rows(parts.processor.image_token_id)
        fine = compare(theirs, parts.model, made, torch.float32)
        in_float64(theirs, parts.model, clip_model)
        return compare(theirs, parts.model, made, torch.float64) and fine and same


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(0 if main(Path(sys.argv[1])) else 1)
