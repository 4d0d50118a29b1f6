"""Two processes under ZeRO-3, an image in one of them only: the losses of one process alone."""

import importlib.util
import re
import subprocess
import sys

import pytest

ZERO_SCRIPT = '''
import faulthandler
import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed.ops
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainingArguments

from varifocal.models import load_model
from varifocal.models.grafted import GraftedForConditionalGeneration as Graft
from varifocal.models.loss import supervised_loss
from varifocal.recipe import (
    PatchMLPSection, LoraSection, MMASection, ModelSection, NoTunerSection
)
from varifocal.run import RunDirectory
from varifocal.training import train
from varifocal.training.trainer import SupervisedTrainer
from varifocal.training.tuner import attach_tuner

LANGUAGE, CLIP, LLAVA, OUT, NAMES, TAKEN_OUT = sys.argv[1:]
SECONDS = 20  # to wait for the other process
STEPS = 4
PICTURED = (0, 3, 4, 5)  # rows: one process sees an image, the other one does, both do, none does
TUNERS = {
    "lora": LoraSection(rank=4, dropout=0.0, target_modules=["q_proj", "v_proj"]),
    "mma": MMASection(dropout=0.0),
    "connector": NoTunerSection(train_connector=True),
}
DEEPSPEED = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


def untuned(kind):
    if kind == "llava":
        return load_model(ModelSection(language_model=LLAVA, dtype="float32")).model
    connector = PatchMLPSection(hidden_dim=16, num_tokens=16, num_global_tokens=0)
    return load_model(
        ModelSection(language_model=LANGUAGE, vision_tower=CLIP, connector=connector,
                     dtype="float32")
    ).model


def built(kind, tuner):
    torch.manual_seed(1)
    base = untuned(kind)
    model = attach_tuner(base, TUNERS[tuner])
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return base, model


def row(base, number):
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, 90, (20,), generator=generator)
    pictured = number in PICTURED
    if pictured:
        ids[1:17] = base.config.image_token_id
    labels = ids.clone()
    labels[:17] = -100
    marks = {"modality_ids": torch.full((20,), int(pictured)), "prompt_mask": labels == -100}
    noise = {"pixel_values": torch.randn(3, 28, 28, generator=generator)} if pictured else {}
    return {"input_ids": ids, "labels": labels, **marks, **noise}


def collate(rows):
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: torch.stack([row[name] for row in rows if name in row]) for name in names}


def trained(kind, tuner, out, world):
    """Train; return the trainer, and the losses and norms of gradients of its steps."""
    base, model = built(kind, tuner)
    args = TrainingArguments(
        output_dir=str(out), report_to="none", disable_tqdm=True, use_cpu=True,
        per_device_train_batch_size=2 // world, max_steps=STEPS, learning_rate=1e-2,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="steps", save_steps=2,
        remove_unused_columns=False, train_sampling_strategy="sequential",
        deepspeed=DEEPSPEED if world == 2 else None, ddp_timeout=SECONDS,
    )
    trainer = SupervisedTrainer(
        model=model, args=args, train_dataset=[row(base, n) for n in range(2 * STEPS)],
        data_collator=collate, connector_learning_rate=5e-3,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    figures = [(log["loss"], float(log["grad_norm"])) for log in logs]
    assert len(figures) == STEPS
    return base, trainer, torch.tensor(figures, dtype=torch.float64)


def take_out():
    honest = Graft._zero
    if TAKEN_OUT == "zero":
        Graft._zero = lambda self, embeds, features: None
    if TAKEN_OUT == "look":

        def looks(self, embeds, features):
            return honest(self, embeds.to(self.get_input_embeddings().weight.dtype), features)

        Graft._zero = looks
    if TAKEN_OUT == "order":
        embed = Graft._embed

        def images_first(self, input_ids, pixels, features):
            if pixels is None:
                self._zero(torch.zeros(1), features)
            return embed(self, input_ids, pixels, features)

        Graft._embed = images_first
    if TAKEN_OUT == "gather":
        train.is_spread = lambda model: False


def work(rank, kind, tuner, out, port):
    faulthandler.dump_traceback_later(5 * SECONDS, exit=True)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    take_out()
    base, trainer, figures = trained(kind, tuner, out, world=2)
    assert all(p.numel() == 0 for p in base.parameters()), "nothing was sharded"
    gathered = train._gather(trainer)
    if rank == 0:
        torch.save(figures, out / "figures")
        processor = SimpleNamespace(save_pretrained=lambda directory: None)
        parts = SimpleNamespace(model=trainer.model, processor=processor)
        recipe = SimpleNamespace(
            name="step", model=ModelSection(language_model=LANGUAGE), tuner=TUNERS[tuner]
        )
        train._save(RunDirectory(out / "run"), recipe, parts, gathered)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def loaded_loss(kind, adapter, step):
    """Open an adapter in one process; return its loss of a step's rows."""
    base = untuned(kind)
    model = PeftModel.from_pretrained(base, adapter).eval()
    rows = collate([row(base, number) for number in (2 * step, 2 * step + 1)])
    rows.pop("prompt_mask")
    with torch.no_grad():
        return float(supervised_loss(model, rows))


def compare(kind, tuner, out):
    _, _, alone = trained(kind, tuner, out / "alone", world=1)
    both = torch.load(out / "both" / "figures")
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=0)
    checkpoint = out / "both" / "checkpoint-2"
    names = {path.name for path in (checkpoint / "global_step2").iterdir()}
    assert {name for name in names if "optim" in name} == {
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)
    }, names
    loss = loaded_loss(kind, checkpoint, 2)
    assert abs(loss - float(both[2, 0])) < 1e-4, (loss, both)
    # of rows without an image a connector alone has no gradient, and one in step has zeros, with
    # which Adam moves it on: so the last step may part them
    places = ["both/checkpoint-2", "alone/checkpoint-2", "both/checkpoint-4", "both/run/adapter"]
    half, alone_half, last, final = [
        load_file(out / place / "adapter_model.safetensors") for place in places
    ]
    assert half.keys() == alone_half.keys() == final.keys() == last.keys()
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, alone_half[name], rtol=0, atol=1e-4, msg=name)
        assert torch.equal(final[name], last[name]), name
    assert any(not torch.equal(final[name], half[name]) for name in half)


def main():
    torch.set_num_threads(1)
    # gloo will do: DeepSpeed's own kernel would be compiled first
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    fork = multiprocessing.get_context("fork")  # torch is imported once
    for number, name in enumerate(NAMES.split(",")):
        kind, tuner = name.split(":")
        out = Path(OUT) / kind / tuner
        (out / "both").mkdir(parents=True)
        port = 20000 + (os.getpid() * 7 + number) % 10000
        each = [(rank, kind, tuner, out / "both", port) for rank in (0, 1)]
        both = [fork.Process(target=work, args=args) for args in each]
        for process in both:
            process.start()
        for process in both:
            process.join()
        if any(process.exitcode for process in both):
            sys.exit(1)
        alone = fork.Process(target=compare, args=(kind, tuner, out))
        alone.start()
        alone.join()
        if alone.exitcode:
            sys.exit(1)
        print(name, "in step", flush=True)


if __name__ == "__main__":
    main()
'''


def launch(parts, llava, tmp_path, *words):
    """Run the script; return its exit code and what it said."""
    script = tmp_path / "step.py"
    script.write_text(ZERO_SCRIPT)
    places = [parts / "language", parts / "clip", llava, tmp_path / "store"]
    command = [sys.executable, "-W", "ignore", script, *places, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=400)
    return done.returncode, done.stdout + done.stderr


STALE = re.compile(r"\b(Attribute|Import|ModuleNotFound|Name|Type)Error\b")
"""The script itself went wrong: it asks for what the code no longer has."""

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("kind", ["graft", "llava"])
def test_zero_3_has_the_losses_of_one_process(parts, llava, tmp_path, kind):
    names = ",".join(f"{kind}:{tuner}" for tuner in ("lora", "mma", "connector"))
    code, said = launch(parts, llava, tmp_path, names, "none")
    assert code == 0, said[-3000:]
    assert said.count("in step") == 3


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("taken_out", ["zero", "look", "order", "gather"])
def test_zero_3_without_its_care(parts, llava, tmp_path, taken_out):
    code, said = launch(parts, llava, tmp_path, "graft:lora", taken_out)
    assert code != 0
    assert "Error" in said
    assert not STALE.search(said), said[-3000:]
    assert "in step" not in said
