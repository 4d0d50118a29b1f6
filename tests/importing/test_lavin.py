"""LaVIN's checkpoints, laid out and computed here from its description, with none of its code.

Letters: T tokens, D width, H heads, d = D / H; N = 1 image.
"""

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, CLIPVisionModel, LlamaForCausalLM

import varifocal as vf
from varifocal.assemble import open_run
from varifocal.errors import ModelError, RunError

D, C, R, HIDDEN, LAYERS, BLOCKS = 32, 16, 8, 12, 2, 8
TEMPERATURE, SCALE = 5.0, 0.5
TOWER = "backbone.visual.transformer.resblocks"


def lavin_tensors(dtype=torch.float32) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name and shape."""
    shapes = {}
    sites = [(f"layers.{i}", D) for i in range(LAYERS)] + [
        (f"{TOWER}.{j}", C) for j in range(BLOCKS)
    ]
    for site, width in sites:
        at = f"{site}.adapter_attn"
        shapes |= {f"{at}.conv_A.weight": (R, width, 1), f"{at}.conv_A.bias": (R,)}
        for branch in ("conv_B", "conv_D"):
            shapes |= {f"{at}.{branch}.weight": (width, R // 2, 1), f"{at}.{branch}.bias": (width,)}
        shapes |= {f"{at}.expert_weights.weight": (2, width), f"{at}.expert_weights.bias": (2,)}
    shapes |= {"adapter_proj.conv_A.weight": (HIDDEN, C), "adapter_proj.conv_A.bias": (HIDDEN,)}
    shapes |= {"adapter_proj.conv_B.weight": (D, HIDDEN), "adapter_proj.conv_B.bias": (D,)}
    shapes |= {"adapter_modality_embedding.weight": (2, D)}
    random = torch.Generator().manual_seed(3)
    drawn = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


def save_checkpoint(file: Path, tensors: dict[str, Tensor], prefix="", **args) -> Path:
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    settings = {"temperature": TEMPERATURE, "adapter_scale": SCALE, "output_dir": "out", "lr": None}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    page = {"model": named, "optimizer": optimizer, "epoch": 4, "scaler": {"scale": 65536.0}}
    torch.save({**page, "args": argparse.Namespace(**settings, **args)}, file)
    return file


def adapter(z: Tensor, state: Tensor, t: dict[str, Tensor], at: str) -> Tensor:
    """Two grouped convolutions over z [N, T, D], mixed by a state [N, D]."""
    w = F.linear(state, t[f"{at}.expert_weights.weight"], t[f"{at}.expert_weights.bias"])
    w = torch.softmax(w / TEMPERATURE, dim=-1)
    h = F.conv1d(z.transpose(1, 2), t[f"{at}.conv_A.weight"], t[f"{at}.conv_A.bias"])
    y = z.transpose(1, 2)
    for k, branch in enumerate(("conv_B", "conv_D")):
        up = F.conv1d(h, t[f"{at}.{branch}.weight"], t[f"{at}.{branch}.bias"], groups=2)
        y = y + SCALE * w[:, k, None, None] * up
    return y.transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 8)).transpose(1, 2)


def visual_tokens(clip: CLIPVisionModel, t: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """CLS after every fourth block, through the neck [1, V, D]; blocks run length first."""
    x = clip.pre_layrnorm(clip.embeddings(pixels)).transpose(0, 1)  # [T, 1, C]
    everything = torch.ones(len(x), len(x), dtype=torch.bool)
    states = []
    for j, block in enumerate(clip.encoder.layers):
        z = block.layer_norm1(x)
        y = adapter(z, z[:, 0], t, f"{TOWER}.{j}.adapter_attn").transpose(0, 1)
        attn = block.self_attn
        q, k, v = (heads(part(y)) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        x = x + attn.out_proj(attend(q, k, v, everything)).transpose(0, 1)
        x = x + block.mlp(block.layer_norm2(x))
        states += [x[:1, 0]] if j % 4 == 3 else []
    down = F.linear(torch.stack(states, dim=1), *(t[f"adapter_proj.conv_A.{n}"] for n in KINDS))
    return F.linear(F.silu(down), *(t[f"adapter_proj.conv_B.{n}"] for n in KINDS))


KINDS = ("weight", "bias")


def lavin_logits(
    llama: LlamaForCausalLM,
    t: dict[str, Tensor],
    before: Tensor,
    image: Tensor | None,
    after: Tensor,
) -> Tensor:
    """The modality token, seen by nobody, in front of text, image and text; logits of the rest."""
    core = llama.model
    token = t["adapter_modality_embedding.weight"][0 if image is None else 1][None, None]
    parts = [
        core.embed_tokens(before),
        *([] if image is None else [image]),
        core.embed_tokens(after),
    ]
    x = torch.cat([token, *parts], dim=1)
    length = x.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[1:, 0] = False
    cos, sin = core.rotary_emb(x, torch.arange(length)[None])
    for i, layer in enumerate(core.layers):
        z = layer.input_layernorm(x)
        y = adapter(z, z[:, 0], t, f"layers.{i}.adapter_attn")
        attn = layer.self_attn
        q, k, v = (heads(part(y)) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k = (u * cos + torch.cat([-u[..., 4:], u[..., :4]], dim=-1) * sin for u in (q, k))
        k, v = (u.repeat_interleave(2, dim=1) for u in (k, v))
        x = x + attn.o_proj(attend(q, k, v, visible))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return llama.lm_head(core.norm(x))[:, 1:]


def do_import(bases: Path, file: Path, out: Path, **options) -> vf.Run:
    names = {"language_model": str(bases / "llama"), "vision_tower": str(bases / "clip")}
    return vf.import_checkpoint(file, "lavin", out, **names, dtype="float32", **options)


@pytest.fixture(scope="module")
def imported(bases, tmp_path_factory):
    """A run made of a checkpoint saved out of DDP, which nobody changes."""
    folder = tmp_path_factory.mktemp("lavin")
    file = save_checkpoint(folder / "15-eph.pth", lavin_tensors(), prefix="module.")
    return do_import(bases, file, folder / "run")


def test_an_imported_run_computes_what_the_checkpoint_does(bases, imported):
    _, parts = open_run(imported.root)
    llama = LlamaForCausalLM.from_pretrained(bases / "llama")
    clip = CLIPVisionModel.from_pretrained(bases / "clip")
    random = torch.Generator().manual_seed(5)
    before, after = (torch.randint(3, 200, (1, n), generator=random) for n in (3, 6))
    pixels = torch.randn(1, 3, 28, 28, generator=random)
    t = lavin_tensors()
    with torch.no_grad():
        tokens = visual_tokens(clip, t, pixels)
        images = torch.full((1, tokens.shape[1]), parts.processor.image_token_id)
        rows = {
            "text": (lavin_logits(llama, t, before, None, after), [before, after], {}),
            "image": (
                lavin_logits(llama, t, before, tokens, after),
                [before, images, after],
                {"pixel_values": pixels},
            ),
        }
        for name, (expected, ids, more) in rows.items():
            found = parts.model(input_ids=torch.cat(ids, dim=1), **more).logits
            found = found[..., : expected.shape[-1]]
            size = expected.abs().max()
            torch.testing.assert_close(found / size, expected / size, rtol=0, atol=1e-5, msg=name)


def test_the_recipe_has_the_checkpoints_settings(imported):
    recipe = imported.recipe
    assert (recipe.tuner.router, recipe.tuner.router_temperature) == ("token", TEMPERATURE)
    assert (recipe.tuner.scale, recipe.tuner.bottleneck_dim) == (SCALE, R)
    assert recipe.model.connector.hidden_dim == HIDDEN
    assert imported.result["steps"] == 0
    origin = json.loads((imported.root / "imported.json").read_text())
    assert origin["num_tensors"] == len(lavin_tensors())
    assert origin["settings"]["output_dir"] == "out"


def test_prompts_and_images_are_lavins(bases, tmp_path, imported):
    images = imported.recipe.model.image_preparation
    assert (images.fit, images.mean, images.std) == (
        "squash",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    turns = [{"role": "user", "content": "Who?"}]
    asked = AutoProcessor.from_pretrained(imported.root / "processor").apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False
    )
    assert asked == "Image: N/A Who?\nResponse:"
    file = save_checkpoint(tmp_path / "c.pth", lavin_tensors(), do_pretrain=True)
    chat = do_import(bases, file, tmp_path / "run")
    assert chat.recipe.data.chat_template == "lavin_chat"


@pytest.mark.parametrize(("dtype", "prefix"), [(torch.float32, "module."), (torch.float16, "")])
def test_back_and_forth_loses_no_bit(bases, tmp_path, dtype, prefix):
    tensors = lavin_tensors(dtype)
    file = save_checkpoint(tmp_path / "c.pth", tensors, prefix=prefix)
    back = vf.export_checkpoint(do_import(bases, file, tmp_path / "run"), "lavin")
    found = torch.load(back, weights_only=True)["model"]
    assert list(found) == [prefix + name for name in tensors]
    for name, tensor in tensors.items():
        assert found[prefix + name].dtype == dtype
        assert torch.equal(found[prefix + name], tensor), name


def test_options_go_before_the_checkpoints_settings(bases, tmp_path, monkeypatch):
    file = save_checkpoint(tmp_path / "c.pth", lavin_tensors())
    monkeypatch.chdir(bases)
    run = do_import(Path(), file, tmp_path / "run", temperature=7.0, scale=2.0)
    monkeypatch.chdir(tmp_path)
    assert run.recipe.model.language_model == str(bases / "llama")
    assert run.recipe.model.vision_tower == str(bases / "clip")
    assert (run.recipe.tuner.router_temperature, run.recipe.tuner.scale) == (7.0, 2.0)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-ran"),))


def changed(change) -> dict[str, Tensor]:
    tensors = lavin_tensors()
    change(tensors)
    return tensors


FIRST = "layers.0.adapter_attn"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{FIRST}.conv_D.bias"), rf"1 tensor is missing \({FIRST}.conv_D.bias\)"),
        (lambda t: t.update(extra=torch.ones(1)), r"1 tensor is unknown \(extra\)"),
        (
            lambda t: t.update({"layers.1.adapter_mlp.conv_A.bias": torch.ones(R)}),
            "adapters before the feed-forward layers, too",
        ),
        (lambda t: t.pop(f"{TOWER}.0.adapter_attn.expert_weights.weight"), "type normal"),
        (lambda t: t.pop("adapter_proj.conv_A.weight"), "holds no adapters of LaVIN"),
        (
            lambda t: t.update({f"{FIRST}.conv_A.weight": torch.ones(R, D, 3)}),
            rf"{FIRST}.conv_A.weight has an unexpected shape \(\[8, 32, 3\]\)",
        ),
        (
            lambda t: t.update({f"{FIRST}.conv_D.bias": torch.ones(D + 1)}),
            rf"{FIRST}.conv_B.bias has an unexpected shape \(\[32\], \[33\]\)",
        ),
        (
            lambda t: t.update({f"{FIRST}.expert_weights.bias": torch.ones(3)}),
            rf"{FIRST}.expert_weights.bias gives \[3\], .* need \[2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(bases, tmp_path, change, words):
    file = save_checkpoint(tmp_path / "c.pth", changed(change))
    with pytest.raises(ModelError, match=words):
        do_import(bases, file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pickle_that_would_run_code_is_not_run(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = save_checkpoint(tmp_path / "c.pth", lavin_tensors(), evil=Evil())
    with pytest.raises(ModelError, match="was not read, since opening it could run code"):
        do_import(bases, file, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth"]


def test_other_bases_and_damaged_files_are_refused(bases, tmp_path, imported):
    file = save_checkpoint(tmp_path / "c.pth", changed(lambda t: None))
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"is damaged, or no file of torch\.save"):
        do_import(bases, file, tmp_path / "run")
    more = {f"layers.2.{n.split('.', 2)[2]}": t for n, t in lavin_tensors().items() if FIRST in n}
    file = save_checkpoint(tmp_path / "d.pth", lavin_tensors() | more)
    with pytest.raises(ModelError, match=r"3 layers of width 32, and .*llama has 2 of width 32"):
        do_import(bases, file, tmp_path / "run")
    with pytest.raises(ModelError, match="there is no file"):
        do_import(bases, tmp_path / "none.pth", tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already"):
        do_import(bases, tmp_path / "none.pth", imported.root)


def test_the_verbs(bases, tmp_path, run):
    file = save_checkpoint(tmp_path / "c.pth", lavin_tensors())
    out = tmp_path / "run"
    names = ("--language-model", bases / "llama", "--vision-tower", bases / "clip")
    code, said, err = run("import", "lavin", file, *names, "--out", out, "--dtype", "float32")
    assert (code, err) == (0, "")
    assert f"all {len(lavin_tensors())} tensors of {file}, each in its place" in said
    code, said, err = run("export", out, "--to", "lavin")
    assert (code, err) == (0, "")
    assert "checkpoint.pth: every tensor was read back and compared, bit for bit" in said
    code, said, err = run("ask", out, "Which?", "--max-new-tokens", "2")
    assert (code, err) == (0, "")


def test_an_imported_run_is_trained_further_from_its_tensors(bases, tmp_path, run, imported):
    (tmp_path / "texts.json").write_text(json.dumps([{"instruction": "Say a.", "output": "a"}] * 4))
    changes = [f"data.train=[{{path: {tmp_path / 'texts.json'}}}]", "training.max_steps=1"]
    recipe = imported.root / "recipe.yaml"
    with pytest.raises(RunError, match="was imported and has no training to go on with"):
        vf.train(recipe, imported.root, overrides=changes, resume=True)
    steps = {}
    for count in (0, 1):
        more = [f"tuner.weights={imported.root}", f"training.max_steps={count}"]
        steps[count] = vf.train(recipe, tmp_path / str(count), overrides=[*changes, *more])
    first, none, one = (
        load_file(root / "adapter" / "adapter_model.safetensors")
        for root in (imported.root, steps[0].root, steps[1].root)
    )
    assert all(torch.equal(tensor, none[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, one[name]) for name, tensor in first.items())
