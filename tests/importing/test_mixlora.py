"""Checkpoints of MixLoRA's public code, laid out and computed here with none of its code.

Letters: T tokens, I inputs and O outputs of a linear, E factors, r chosen ones.
"""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, LlamaForCausalLM

import varifocal as vf
from varifocal.assemble import open_run
from varifocal.errors import ModelError

E, R, ALPHA = 4, 2, 3.0
OURS, OF_B = "base_model.model.", "cmoa_loarB_extra_selector"
SEVEN = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]


def tensors_of(bases: Path, *, conditional: bool) -> dict[str, Tensor]:
    """All tensors of a checkpoint: the frozen models, factors, routers and the projector."""
    llama = load_file(bases / "llama" / "model.safetensors")
    clip = load_file(bases / "clip" / "model.safetensors")
    tensors = {f"{OURS}{name}": tensor for name, tensor in llama.items()}
    tower = f"{OURS}model.vision_tower.vision_tower.vision_model."
    tensors |= {f"{tower}{name}": tensor for name, tensor in clip.items()}
    tensors |= {f"{OURS}model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return 0.4 * torch.randn(shape, generator=random)

    for linear in (f"model.layers.{i}.{name}" for i in (0, 1) for name in SEVEN):
        outputs, inputs = llama[f"{linear}.weight"].shape
        at = f"{OURS}{linear}"
        tensors |= {f"{at}.lora_A.default.{e}": draw(1, inputs) for e in range(E)}
        tensors |= {f"{at}.lora_B.default.{e}": draw(1, outputs) for e in range(E)}
        tensors[f"{at}.cmoa_selector.loraA_selector.weight"] = draw(E, inputs)
        of_b = OF_B if conditional else "cmoa_selector"
        tensors[f"{at}.{of_b}.loraB_selector.weight"] = draw(E, inputs)
        if conditional:
            tensors[f"{at}.{OF_B}.loraA_param2loraB_selector.weight"] = draw(E, R * inputs)
    width = clip["pre_layrnorm.weight"].shape[0]
    tensors[f"{OURS}model.mm_projector.weight"] = draw(32, width)
    tensors[f"{OURS}model.mm_projector.bias"] = draw(32)
    return tensors


def save_folder(folder: Path, bases: Path, tensors: dict[str, Tensor], **config) -> Path:
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    page = {"model_type": "llava_cmoa", "_name_or_path": str(bases / "llama")}
    page |= {"mm_vision_tower": str(bases / "clip"), "mm_vision_select_layer": -2}
    (folder / "config.json").write_text(json.dumps(page | config))
    return folder


def save_settings(folder: Path, module="llava.train.train_cmoa", **values) -> None:
    """Pickle an object of a class that only the authors' code has."""
    stand_in = types.ModuleType(module)
    kind = type("TrainingArguments", (), {"__module__": module})
    stand_in.TrainingArguments = kind
    settings = kind()
    settings.__dict__ |= {"n_selected": R, "lora_alpha": ALPHA, "device": torch.device("cpu")}
    settings.__dict__ |= {"itself": kind(), **values}
    names = [module.rsplit(".", i)[0] for i in range(module.count("."), -1, -1)]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module, stand_in)
        torch.save(settings, folder / "cmoa_args.bin")


def linear(x: Tensor, t: dict[str, Tensor], name: str) -> Tensor:
    """A linear with its update on one row x [T, I], routed by the mean of all tokens."""
    at = f"{OURS}{name}"
    a, b = (torch.cat([t[f"{at}.lora_{n}.default.{e}"] for e in range(E)]) for n in "AB")
    h = x.mean(dim=0)
    chosen_a = torch.topk(h @ t[f"{at}.cmoa_selector.loraA_selector.weight"].T, R).indices
    conditional = t.get(f"{at}.{OF_B}.loraA_param2loraB_selector.weight")
    of_b = "cmoa_selector" if conditional is None else OF_B
    p_b = torch.softmax(h @ t[f"{at}.{of_b}.loraB_selector.weight"].T, dim=-1)
    if conditional is not None:
        weight = conditional.unflatten(1, (R, -1)).permute(1, 2, 0)  # [r, I, E]
        scores = torch.einsum("brd,rfe->bre", a[chosen_a][None], weight).softmax(dim=-1)
        p_b = p_b + scores.sum(dim=1).softmax(dim=-1)[0]
    chosen_b = torch.topk(p_b, R).indices
    return x @ t[f"{at}.weight"].T + ALPHA / R * (x @ a[chosen_a].T) @ b[chosen_b]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + torch.cat([-x[..., 4:], x[..., :4]], dim=-1) * sin


def logits_of(llama: LlamaForCausalLM, t: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits [T, vocabulary] of one row of embeddings x [T, D]."""
    core = llama.model
    cos, sin = (part[0] for part in core.rotary_emb(x[None], torch.arange(len(x))[None]))
    visible = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for i, layer in enumerate(core.layers):
        at = f"model.layers.{i}"
        z = layer.input_layernorm(x)
        q, k, v = (
            linear(z, t, f"{at}.self_attn.{n}_proj").unflatten(-1, (-1, 8)).transpose(0, 1)
            for n in "qkv"
        )
        q, k = rotated(q, cos, sin), rotated(k.repeat_interleave(2, dim=0), cos, sin)
        scores = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(~visible, -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ v.repeat_interleave(2, dim=0)
        x = x + linear(mixed.transpose(0, 1).flatten(1), t, f"{at}.self_attn.o_proj")
        z = layer.post_attention_layernorm(x)
        gate, up = (linear(z, t, f"{at}.mlp.{n}_proj") for n in ("gate", "up"))
        x = x + linear(F.silu(gate) * up, t, f"{at}.mlp.down_proj")
    return llama.lm_head(core.norm(x))


@pytest.mark.parametrize("conditional", [True, False], ids=["input_lora_a_param", "input"])
def test_an_imported_run_computes_what_the_checkpoint_does(bases, tmp_path, conditional):
    t = tensors_of(bases, conditional=conditional)
    folder = save_folder(tmp_path / "theirs", bases, t)
    save_settings(folder)
    run = vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32")
    assert run.recipe.data.chat_template == "vicuna_v1"
    tuner = run.recipe.tuner
    assert (tuner.num_factors, tuner.rank, tuner.lora_alpha) == (E, R, ALPHA)
    assert tuner.conditional == ("reference" if conditional else False)
    assert set(tuner.target_modules) == {name.split(".")[1] for name in SEVEN}
    _, parts = open_run(run.root)
    llama = LlamaForCausalLM.from_pretrained(bases / "llama")
    clip = CLIPVisionModel.from_pretrained(bases / "clip")
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 200, (1, 9), generator=random)
    pixels = torch.randn(1, 3, 28, 28, generator=random)
    placeholders = torch.full((1, 4), parts.processor.image_token_id)
    with torch.no_grad():
        states = clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
        projector = (t[f"{OURS}model.mm_projector.{kind}"] for kind in ("weight", "bias"))
        words = llama.model.embed_tokens(ids)[0]
        shown = torch.cat([words[:2], F.linear(states, *projector), words[2:]])
        for x, given in (
            (words, {"input_ids": ids}),
            (
                shown,
                {
                    "input_ids": torch.cat([ids[:, :2], placeholders, ids[:, 2:]], dim=1),
                    "pixel_values": pixels,
                },
            ),
        ):
            expected = logits_of(llama, t, x)
            found = parts.model(**given).logits[0, :, : expected.shape[-1]]
            size = expected.abs().max()
            torch.testing.assert_close(found / size, expected / size, rtol=0, atol=1e-5)


def test_settings_that_the_folder_lacks_are_asked_for_or_read_off(bases, tmp_path):
    folder = save_folder(tmp_path / "a", bases, tensors_of(bases, conditional=False))
    with pytest.raises(ModelError, match="how many factors are chosen: give --rank"):
        vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32")
    run = vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32", rank=3)
    assert (run.recipe.tuner.rank, run.recipe.tuner.lora_alpha) == (3, 2 * E)
    folder = save_folder(tmp_path / "b", bases, tensors_of(bases, conditional=True))
    assert (
        vf.import_checkpoint(
            folder, "mixlora", tmp_path / "run2", dtype="float32"
        ).recipe.tuner.rank
        == R
    )
    with pytest.raises(ModelError, match=r"--rank 3: the conditional router in .* is of 2"):
        vf.import_checkpoint(folder, "mixlora", tmp_path / "run3", dtype="float32", rank=3)


def changed(bases, change) -> dict[str, Tensor]:
    tensors = tensors_of(bases, conditional=True)
    change(tensors)
    return tensors


FIRST = f"{OURS}model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.default.3"), "1 tensor is missing .*lora_B.default.3"),
        (
            lambda t: t.update(extra=torch.ones(1)),
            r"neither the adapter nor the models .*\(extra\)",
        ),
        (
            lambda t: t.update({f"{FIRST}.weight": t[f"{FIRST}.weight"] * 1.01}),
            "q_proj.weight has other numbers than",
        ),
        (lambda t: t.pop(f"{OURS}model.mm_projector.bias"), "1 tensor is missing .*projector.bias"),
        (lambda t: t.clear(), "holds no factors of MixLoRA"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(bases, tmp_path, change, words):
    folder = save_folder(tmp_path / "theirs", bases, changed(bases, change))
    with pytest.raises(ModelError, match=words):
        vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32")
    assert not (tmp_path / "run").exists()


def test_rows_of_added_tokens_are_left_out_and_said(bases, tmp_path):
    name = f"{OURS}model.embed_tokens.weight"
    tensors = tensors_of(bases, conditional=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    tensors[name] = torch.cat([tensors[name], torch.ones(2, 32).bfloat16()])
    folder = save_folder(tmp_path / "theirs", bases, tensors)
    run = vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32")
    notes = json.loads((run.root / "imported.json").read_text())["notes"]
    assert any(f"{name} has 2 rows more than" in note for note in notes)


def test_settings_run_nothing_and_others_are_refused(bases, tmp_path):
    folder = save_folder(tmp_path / "theirs", bases, tensors_of(bases, conditional=True))
    save_settings(folder, mix_loraA=False)
    with pytest.raises(ModelError, match="was trained with mix_loraA False, and only True"):
        vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32")
    save_settings(folder, module="elsewhere")
    with pytest.raises(ModelError, match="was not read, since opening it could run code"):
        vf.import_checkpoint(folder, "mixlora", tmp_path / "run", dtype="float32")


def test_the_verb(bases, tmp_path, run):
    folder = save_folder(tmp_path / "theirs", bases, tensors_of(bases, conditional=True))
    out = tmp_path / "run"
    code, said, err = run("import", "mixlora", folder, "--out", out, "--dtype", "float32")
    assert (code, err) == (0, "")
    assert "tensors of" in said
    assert "Its routers are as drawn." in said
