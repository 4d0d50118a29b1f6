"""Two gloo processes learn as one: DDP and FSDP2, resumed on another number, and one that dies.

One script forks every process; it trains the runs that it is asked for.
"""

import json

import pytest
import torch

SCRIPT = '''
import faulthandler
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor

from varifocal.errors import RunError
from varifocal.planning.plan import foresee
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory
from varifocal.training import train as train_module
from varifocal.training.launch import engine_overrides
from varifocal.training.trainer import SupervisedTrainer

PAGE, OUT, ASKED, TAKEN_OUT = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
SECONDS = 120  # to wait for the other process
ENGINE = {"die": "ddp", "one": "ddp"}
PACE = ["training.max_steps=6", "training.save_steps=2", "training.save_total_limit=null",
        "tuner.dropout=0.0", "training.logging_steps=1", f"training.ddp_timeout={SECONDS}"]


def overrides(world, engine):
    return [*PACE, *engine_overrides(engine), f"training.gradient_accumulation_steps={2 // world}"]


def work(rank, world, engine, more, out, resume, port, say):
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    reduced = count_reduced()
    if engine == "die":
        die_while_saving(rank)
    found = {}
    result_of = train_module.result_of
    rates = found["rates"] = []
    drop_zeros = SupervisedTrainer.drop_zeros

    def note_rates(self):  # before every update
        groups = self.optimizer.param_groups
        rates.append([group["lr"] for group in groups if group["params"]])
        drop_zeros(self)

    SupervisedTrainer.drop_zeros = note_rates

    def look(trainer, *rest):
        found.update(looked_at(trainer, reduced))
        return result_of(trainer, *rest)

    train_module.result_of = look
    page = load_recipe(PAGE, [*overrides(world, ENGINE.get(engine, engine)), *more])
    try:
        train_module.run_training(page, out, resume=resume, predict=foresee)
    except RunError as error:
        found["error"] = str(error)
    if rank == 0:
        say.put(found)
        say.close()
        say.join_thread()
    os._exit(0)  # the other process may be gone, and no group is destroyed without it


def count_reduced():
    """Bytes that FSDP2 gives to be reduced."""
    reduced = []
    names = ("reduce_scatter_single", "reduce_scatter_tensor")  # torch 2.13 has both
    name = next(each for each in names if hasattr(torch.distributed, each))
    reduce_scatter = getattr(torch.distributed, name)

    def counted(output, input, *args, **kwargs):
        reduced.append(input.numel() * input.element_size())
        return reduce_scatter(output, input, *args, **kwargs)

    setattr(torch.distributed, name, counted)
    return reduced


def looked_at(trainer, reduced):
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    everything = list(trainer.model.parameters())
    wrapped = trainer.model_wrapped
    ddp = getattr(wrapped, "_get_ddp_logging_data", dict)()
    return {
        "sharded": [isinstance(p, DTensor) for p in everything],
        "reduced": sum(reduced),
        "padded": sum(4 * -(-len(p) // 2) * 2 * p[0].numel() for p in trained),
        "ddp": ddp.get("total_parameter_size_bytes"),
        "trained": sum(4 * p.numel() for p in trained),
        "frozen": sum(4 * p.numel() for p in everything if not p.requires_grad),
        "steps": trainer.state.global_step,
    }


def die_while_saving(rank):
    """The second process is killed when a half of its part of checkpoint 4 is written."""
    save = SupervisedTrainer._save_rng_state

    def half(self, output_dir):
        if rank == 1 and self.state.global_step == 4:
            os.makedirs(output_dir, exist_ok=True)
            (Path(output_dir) / "rng_state_1.pth").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, output_dir)

    SupervisedTrainer._save_rng_state = half


def take_out():
    if TAKEN_OUT == "zeros":
        SupervisedTrainer.drop_zeros = lambda self: None
    if TAKEN_OUT == "even":
        train_module._shared_rows = lambda recipe, data: data.rows
    if TAKEN_OUT == "optimizer":
        SupervisedTrainer._load_optimizer_and_scheduler = lambda self, checkpoint: None
    if TAKEN_OUT == "weights":
        SupervisedTrainer._load_from_checkpoint = lambda *args: None
    if TAKEN_OUT == "silent":
        import varifocal.training.trainer as module
        module.turn_on_fsdp2 = lambda trainer: None


OTHER_RATES = ["training.learning_rate=1e-3", "training.connector_learning_rate=2e-3",
               "training.lr_scheduler_type=linear"]
BY_TABLE = ["tuner={type: none, train_connector: true}"]  # so the tower's features are one
ENGINES = ("one", "ddp", "fsdp2")
KEEP = ["data.max_length=200", "data.row_length=400",
        "training.keep={num_examples: 6, max_new_tokens: 8, share: 0.4, weight: 2.0}"]
EVALUATED = ["training.eval_steps=3", "training.eval_questions=2", "data.evaluate="
             + json.dumps([{"path": load_recipe(PAGE).data.train[0].path, "format": "scienceqa",
                            "split": "train"}])]
RUNS = {  # processes, engine, the run and step of the checkpoint to go on from, other knobs
    "one": (1, "ddp", None, []),
    "ddp": (2, "ddp", None, []),
    "ddp back": (1, "ddp", ("ddp", 4), []),
    "fsdp2": (2, "fsdp2", ("one", 2), []),
    "fsdp2 back": (1, "ddp", ("fsdp2", 4), []),
    "died": (2, "die", None, []),
    "after": (2, "ddp", ("died", 4), []),
    "one by table": (1, "ddp", None, BY_TABLE),
    "ddp by table": (2, "ddp", None, BY_TABLE),
    **{f"{name} evaluated": (int(name != "one") + 1, name, None, EVALUATED) for name in ENGINES},
    **{f"{name} keep": (int(name != "one") + 1, name, None, KEEP) for name in ENGINES},
    **{
        f"{engine} of other rates": (int(engine != "one") + 1, engine, ("one", 4), OTHER_RATES)
        for engine in ENGINES
    },
}


def run(name):
    """Train in processes of their own."""
    world, engine, start, more = RUNS[name]
    out = OUT / name
    if start is not None:
        origin, step = start
        shutil.copytree(OUT / origin, out)
        for path in (out / "checkpoints").glob("checkpoint-*"):
            if int(path.name.rpartition("-")[2]) > step:
                shutil.rmtree(path)
    fork = multiprocessing.get_context("fork")
    say = fork.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rest = (world, engine, more, out, start is not None, port, say)
    each = [fork.Process(target=work, args=(rank, *rest)) for rank in range(world)]
    for process in each:
        process.start()
    found = say.get(timeout=3 * SECONDS)
    for process in each:
        process.join()
    exits = [process.exitcode for process in each]
    records = RunDirectory(out).read_metrics()
    curve = [[r["loss"], r["grad_norm"], r["learning_rate"]] for r in records if "loss" in r]
    found["evaluations"] = [r for r in records if "eval_loss" in r]
    plan = json.loads((out / "plan.json").read_text())
    return {**found, "curve": curve, "exits": exits, "plan": plan, **files(out)}


def files(out):
    newest = RunDirectory(out).newest_checkpoint()
    with safe_open(newest / "adapter_model.safetensors", "pt") as adapter:
        names = list(adapter.keys())
    state = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
    return {
        "newest": newest.name,
        "checkpoint": sorted(path.name for path in newest.iterdir()),
        "names": names,
        "moments": sum(4 * each["exp_avg"].numel() for each in state.values()),
        "unlogged": json.loads((newest / "unlogged.json").read_text()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    take_out()
    told = {name: run(name) for name in ASKED.split(",")}
    print(json.dumps(told))
'''


@pytest.fixture
def launch(recipe_file, tmp_path, forks):
    """Train runs: `launch("one", "ddp")` returns what each told."""

    def launch(*asked, taken_out="none"):
        script = tmp_path / "scale.py"
        script.write_text(SCRIPT)
        places = [script, recipe_file, tmp_path / "runs"]
        done = forks.run(["python", *places, ",".join(asked), taken_out])
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout.splitlines()[-1])
        return [told[name] for name in asked]

    return launch


def assert_same_curve(mine, theirs):
    assert len(mine) == len(theirs)
    for step, (one, other) in enumerate(zip(mine, theirs, strict=True), 1):
        assert one == pytest.approx(other, rel=1e-5), f"step {step}"


def test_two_processes_learn_as_one_and_one_goes_on_from_them(launch, tmp_path):
    one, ddp, back = launch("one", "ddp", "ddp back")
    assert len(one["curve"]) == 6

    # The same global batches, unequal between the processes, and an epoch that two cannot share.
    assert_same_curve(ddp["curve"], one["curve"])
    spent = ddp["unlogged"]["spent"]
    assert spent[0]["tokens_trained"] != spent[1]["tokens_trained"]
    whole = one["unlogged"]["spent"][0]
    assert whole["tokens_trained"] == sum(each["tokens_trained"] for each in spent)
    assert len(ddp["unlogged"]["losses"]) == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(ddp["checkpoint"])

    # Each draws its own dropout: of one seed, both would drop the same places of their rows.
    newest = tmp_path / "runs" / "ddp" / "checkpoints" / ddp["newest"]
    states = [torch.load(newest / f"rng_state_{n}.pth", weights_only=False) for n in range(2)]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])

    # Reduced and saved: what is trained, and nothing else.
    assert ddp["ddp"] == ddp["trained"] == one["trained"]
    assert not any(ddp["sharded"])
    assert_saved(ddp, one)

    assert_same_curve(back["curve"], one["curve"])
    assert back["steps"] == 6

    for run in (one, ddp, back):
        assert_planned(run["plan"], one["plan"])
    assert ddp["plan"]["predicted"]["num_devices"] == 2
    # The connector's gradient comes through rows without an image, too.
    assert ddp["plan"]["measured"]["flops"] > one["plan"]["measured"]["flops"]


def assert_planned(plan, alone):
    """Predicted next to measured, of all processes together, whatever their number."""
    predicted, measured = plan["predicted"], plan["measured"]
    for name in ("steps", "tokens", "tokens_trained"):
        assert predicted[name] == measured[name] == alone["measured"][name], name
    assert predicted["vision_passes"] == measured["vision_passes"]
    assert predicted["flops"] == pytest.approx(measured["flops"], rel=1e-3)
    assert predicted["peak_memory_gib"] > 0 < measured["peak_memory_gib"]
    assert predicted["hours"] > 0 < measured["hours"]


@pytest.mark.slow
def test_two_processes_share_a_new_table_of_features(launch):
    one, ddp = launch("one by table", "ddp by table")
    assert_same_curve(ddp["curve"], one["curve"])
    assert one["plan"]["measured"]["vision_passes"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_are_held_to_the_base_as_one_is(launch, engine):
    one, two = launch("one keep", f"{engine} keep")
    assert_same_curve(two["curve"], one["curve"])
    spent = [each["tokens_distilled"] for each in two["unlogged"]["spent"]]
    assert sum(spent) == one["unlogged"]["spent"][0]["tokens_distilled"] > 0
    assert spent[0] != spent[1]
    # One process has written the answers; the run before left them in the cache.
    assert [each["flops_keep"] for each in two["unlogged"]["spent"]] == [0, 0]


@pytest.mark.slow
def test_two_processes_score_what_one_does(launch):
    alone, one, two = launch("one", "one evaluated", "ddp evaluated")
    assert one["curve"] == alone["curve"]
    assert_same_curve(two["curve"], alone["curve"])
    assert [each["step"] for each in two["evaluations"]] == [3, 6]
    for mine, theirs in zip(two["evaluations"], one["evaluations"], strict=True):
        assert mine["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
        assert mine["eval_score"] == theirs["eval_score"]
    spent = [each["tokens_evaluated"] for each in two["unlogged"]["spent"]]
    assert sum(spent) == one["unlogged"]["spent"][0]["tokens_evaluated"]
    assert min(spent) > 0
    plan = one["plan"]
    assert plan["predicted"]["num_evaluations"] == 2
    measured = plan["measured"]["tokens_evaluated"]
    assert plan["predicted"]["tokens_evaluated"] == pytest.approx(measured, rel=0.2)


def assert_takes_rates(run, one, alone):
    """From step 5 on, in every group and in what is learned, as one process with these rates."""
    for rates, left in zip(run["rates"], (0.5, 0.25), strict=True):  # linear, over steps 3 to 6
        assert sorted(set(rates)) == pytest.approx([1e-3 * left, 2e-3 * left])
    assert_same_curve(run["curve"], alone["curve"])
    assert_same_curve(run["curve"][:4], one["curve"][:4])
    assert run["curve"][5][0] != pytest.approx(one["curve"][5][0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_resumed_run_takes_other_rates_and_another_schedule(launch, engine):
    runs = ("one of other rates", f"{engine} of other rates")
    one, alone, run = launch("one", *runs)
    assert all(run["sharded"]) == (engine == "fsdp2")
    assert_takes_rates(alone, one, alone)
    assert_takes_rates(run, one, alone)


def assert_saved(run, one):
    """The checkpoint holds the trained tensors, whole, and moments for those that moved."""
    assert 0.9 * one["trained"] < run["moments"] <= one["trained"]
    assert run["names"] == one["names"]


@pytest.mark.slow
def test_fsdp2_shards_and_goes_on_from_one_process_and_back(launch):
    one, fsdp2, back = launch("one", "fsdp2", "fsdp2 back")
    assert all(fsdp2["sharded"])
    # FSDP2 pads to an even first dimension; the tower's last block is never read, and not reduced.
    assert 0.9 * fsdp2["padded"] < fsdp2["reduced"] / 4 <= fsdp2["padded"]  # four steps
    assert one["trained"] <= fsdp2["padded"] < 1.2 * one["trained"] < one["frozen"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(fsdp2["checkpoint"])
    for run in (fsdp2, back):
        assert_same_curve(run["curve"], one["curve"])
        assert_saved(run, one)
        assert run["steps"] == 6


@pytest.mark.slow
def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(launch):
    one, died, after = launch("one", "died", "after")
    assert died["exits"][1] == -9
    assert "another process of this training has ended" in died["error"]
    assert died["newest"] == "checkpoint-2"
    assert_same_curve(died["curve"], one["curve"][:4])
    assert_same_curve(after["curve"], one["curve"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taken_out", "run"),
    [("zeros", "ddp"), ("even", "ddp"), ("optimizer", "fsdp2"), ("weights", "fsdp2")],
)
def test_without_its_care_they_part(launch, taken_out, run):
    one, other = launch("one", run, taken_out=taken_out)
    with pytest.raises(AssertionError, match="step"):
        assert_same_curve(other["curve"], one["curve"])


@pytest.mark.slow
def test_fsdp_that_does_not_happen_is_refused(launch):
    _, fsdp2 = launch("one", "fsdp2", taken_out="silent")
    assert "training.fsdp was asked for" in fsdp2["error"]
