"""Two processes, an image in one of them only: nobody waits, and both find the mean gradient."""

import re

import pytest

SCRIPT = '''
import multiprocessing
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from varifocal.models import connector_name, load_model
from varifocal.models.distributed import gather_tensors
from varifocal.recipe import PatchMLPSection, ModelSection
from varifocal.tuners import MMAConfig

LANGUAGE, CLIP, LLAVA, STORE, WAYS, TUNERS, TAKEN_OUT = sys.argv[1:]
SECONDS = 60  # what the two do takes one; a process that waits this long would wait forever


def untuned(kind):
    if kind == "llava":
        section = ModelSection(language_model=LLAVA, dtype="float32")
    else:
        connector = PatchMLPSection(hidden_dim=16, num_tokens=16, num_global_tokens=0)
        section = ModelSection(
            language_model=LANGUAGE, vision_tower=CLIP, connector=connector, dtype="float32"
        )
    return load_model(section).model.double()


def build(kind, tuner):
    """A model, the modules to shard, and a batch of each process."""
    base = untuned(kind)
    model = base
    if tuner == "mma":
        torch.manual_seed(1)
        model = get_peft_model(
            base, MMAConfig(dropout=0.0, modules_to_save=[connector_name(base)])
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    return base, model.train()


def batch_of(base, rank):
    image = base.config.image_token_id
    ids = [5, *[image] * 16, 7, 9] if rank == 0 else [5, 6, 8]
    batch = {"input_ids": torch.tensor([ids]), "modality_ids": torch.full((1, len(ids)), 1 - rank)}
    if rank == 0:
        noise = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
        batch["pixel_values"] = noise.double()
    return batch


def backward(model, batch):
    model(**batch, use_cache=False).logits.square().mean().backward()


def gradients(model):
    return {
        name.removeprefix("module."): getattr(p.grad, "full_tensor", lambda g=p.grad: g)().clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def expected(kind, tuner):
    """The mean of the processes' gradients, found alone."""
    base, model = build(kind, tuner)
    for rank in (0, 1) if tuner == "mma" else (0,):  # of text, a connector learns nothing
        backward(model, batch_of(base, rank))
    return {name: gradient / 2 for name, gradient in gradients(model).items()}


def parts_of(base):
    inner = base if hasattr(base, "connector") else base.model
    tower = inner.vision_tower
    layers = [m for m in tower.modules() if type(m).__name__ == "CLIPEncoderLayer"]
    assert layers
    decoder = base.language_model.model if inner is base else inner.language_model
    return [*layers, *decoder.layers, base.get_submodule(connector_name(base))]


def check(kind, tuner, way, rank, want):
    base, model = build(kind, tuner)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in want)  # a tower's last block is never read
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in want}
    ran = []
    inner = base if hasattr(base, "connector") else base.model
    inner.vision_tower.register_forward_hook(lambda *_: ran.append(1))
    if way == "ddp":
        model = DistributedDataParallel(model)
    else:
        for part in parts_of(base) if way == "fsdp2" else ():
            fully_shard(part)
        fully_shard(model)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    for _ in range(2):  # DDP notices a parameter without a gradient at the next forward
        model.zero_grad()
        backward(model, batch_of(base, rank))
        found = gradients(model)
        assert found.keys() == want.keys(), want.keys() ^ found.keys()
        for name, gradient in want.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12, msg=name)
        assert all(found[name].abs().max() > 0 for name in want if "_projector" in name)
    assert base.vision_passes == (2 if rank == 0 else 0)
    assert len(ran) == (2 if rank == 0 or way == "fsdp2" else 0), (way, ran)
    if way == "fsdp2" and tuner == "mma":
        check_saved(kind, model, {name: before[name] - want[name] for name in want}, rank)


def check_saved(kind, model, want, rank):
    """Take a step, save the adapter, and open it again in one process."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(parameter.grad)
    whole = gather_tensors(model, [each for each in model.parameters() if each.requires_grad])
    assert want.keys() <= whole.keys()
    if rank == 0:
        folder = f"{STORE}-{kind}"
        model.save_pretrained(folder, state_dict=whole)
        base = untuned(kind)
        opened = dict(PeftModel.from_pretrained(base, folder).named_parameters())
        for name, tensor in want.items():
            torch.testing.assert_close(opened[name].double(), tensor, rtol=0, atol=1e-6, msg=name)


def work(rank, wanted):
    dist.init_process_group(
        "gloo", init_method=f"file://{STORE}", rank=rank, world_size=2,
        timeout=timedelta(seconds=SECONDS),
    )
    if TAKEN_OUT == "graft":
        from varifocal.models.grafted import GraftedForConditionalGeneration
        GraftedForConditionalGeneration._zero = lambda self, embeds, features: None
    if TAKEN_OUT == "llava":
        from varifocal.models.families import llava
        llava._zero = lambda model, inner, embeds: None
    sys.stdout.write(f"ready {rank}" + chr(10))
    sys.stdout.flush()
    for (kind, tuner), want in wanted.items():
        for way in WAYS.split(","):
            check(kind, tuner, way, rank, want)
            print(kind, tuner, way, rank, flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = [TAKEN_OUT] if TAKEN_OUT in ("graft", "llava") else ["graft", "llava"]
    names = [(kind, tuner) for kind in kinds for tuner in TUNERS.split(",")]
    wanted = {each: expected(*each) for each in names}
    fork = multiprocessing.get_context("fork")  # torch is imported once
    both = [fork.Process(target=work, args=(rank, wanted)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(any(process.exitcode for process in both))
'''


@pytest.fixture
def launch(parts, llava, tmp_path, forks):
    """Run the script; return its exit code and what it said."""

    def launch(*words):
        script = tmp_path / "step.py"
        script.write_text(SCRIPT)
        places = [parts / "language", parts / "clip", llava, tmp_path / "store"]
        done = forks.run(["python", script, *places, *words])
        return done.returncode, done.stdout + done.stderr

    return launch


def test_ddp_and_fsdp2_find_the_mean_gradient(launch):
    code, said = launch("ddp,fsdp2", "mma", "none")
    assert code == 0, said[-3000:]


@pytest.mark.slow
def test_every_way_of_sharding_and_a_connector_alone(launch):
    code, said = launch("ddp,fsdp2,fsdp2-whole", "mma,connector", "none")
    assert code == 0, said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["graft", "llava"])
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_without_the_touch_they_part(launch, kind, way):
    code, said = launch(way, "mma", kind)
    assert re.search(r"ready [01]", said), said[-1500:]  # it is the step that fails
    assert code != 0
    assert "Error" in said
    assert f"{kind} mma {way}" not in said
