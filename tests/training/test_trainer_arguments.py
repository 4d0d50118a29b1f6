"""Every field of transformers' TrainingArguments does something in a recipe, or is refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from transformers import TrainerCallback, TrainingArguments

from varifocal.errors import RecipeError
from varifocal.recipe import TrainingSection, load_recipe
from varifocal.recipe.trainer_arguments import REFUSED, PassedArguments
from varifocal.recipe.training import _OWN_KNOBS as OWN
from varifocal.run import RunDirectory
from varifocal.training import train as training
from varifocal.training.train import run_training

FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}
DECLARED = set(TrainingSection.model_fields) - OWN
EVALUATION = {"eval_steps", "load_best_model_at_end", "metric_for_best_model"}
"""Under transformers' names, but acted upon here: see test_validation.py."""
PASSED = set(PassedArguments.model_fields)
OLDER = {"warmup_ratio", "group_by_length"}  # of older transformers, refused by name

# A value of each passed field that is not transformers' own, and what has to stand next to it.
EXAMPLES = {
    "optim": ("sgd", {}),
    "optim_args": ("momentum=0.9", {"optim": "sgd"}),
    "adam_epsilon": (1e-6, {}),
    "lr_scheduler_kwargs": ({"num_cycles": 1.5}, {}),
    "neftune_noise_alpha": (5.0, {"data.packing": False}),
    "torch_empty_cache_steps": (2, {}),
    "full_determinism": (True, {}),
    "save_strategy": ("epoch", {}),
    "logging_first_step": (True, {}),
    "log_level": ("error", {}),
    "log_level_replica": ("error", {}),
    "log_on_each_node": (False, {}),
    "report_to": ("none", {}),
    "run_name": ("x", {"report_to": "kubeflow"}),
    "project": ("x", {"report_to": "kubeflow"}),
    "trackio_space_id": ("x", {"report_to": "kubeflow"}),
    "trackio_bucket_id": ("x", {"report_to": "kubeflow"}),
    "trackio_static_space_id": ("x", {"report_to": "kubeflow"}),
    "dataloader_pin_memory": (False, {}),
    "dataloader_persistent_workers": (True, {"data.num_workers": 1, "data.lazy": False}),
    "dataloader_prefetch_factor": (3, {"data.num_workers": 1, "data.lazy": False}),
    "dataloader_multiprocessing_context": ("spawn", {"data.num_workers": 1}),
    "ddp_find_unused_parameters": (True, {}),
    "ddp_bucket_cap_mb": (7, {}),
    "ddp_broadcast_buffers": (False, {}),
    "ddp_backend": ("gloo", {}),
    "ddp_timeout": (77, {}),
}
ENGINES = {"fsdp", "fsdp_config", "deepspeed", "tf32"}  # need other processes, or a GPU


def overrides(key):
    value, beside = EXAMPLES[key]
    named = {name if "." in name else f"training.{name}": each for name, each in beside.items()}
    return {f"training.{key}": value, **named}


def test_every_field_of_the_installed_transformers_has_its_place():
    """A field that is new in transformers stands here: pass it, with a proof, or refuse it."""
    assert FIELDS - DECLARED - PASSED - set(REFUSED) == EVALUATION
    assert len(DECLARED) + len(PASSED) + len(REFUSED) == len(DECLARED | PASSED | set(REFUSED))
    assert FIELDS >= DECLARED | PASSED
    newer = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # than 5.20
    assert FIELDS | OLDER | newer >= set(REFUSED)
    assert set(EXAMPLES) | ENGINES == PASSED


def test_the_recipes_page_names_every_passed_field():
    assert {name for name in PASSED if f"`{name}`" not in TrainingSection.__doc__} == set()


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_field_that_would_do_nothing_is_refused_with_what_to_do(key, recipe):
    with pytest.raises(RecipeError) as refused:
        recipe({f"training.{key}": 1})
    assert str(refused.value) == f"training.{key}: not set here; {REFUSED[key]}"


@pytest.mark.parametrize("key", sorted(EXAMPLES))
def test_a_passed_field_reaches_transformers(key, recipe, monkeypatch):
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://localhost:1")
    handed = recipe(overrides(key)).training.trainer_arguments()
    assert handed[key] == EXAMPLES[key][0]
    assert key not in recipe({f"training.{key}": None}).training.trainer_arguments()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"optim": 3}, "optim: 3 was given; it should be a valid string"),
        ({"adam_epsilon": -1.0}, "adam_epsilon: -1.0 was given; it should be greater than 0"),
        ({"ddp_timeout": "long"}, "ddp_timeout: 'long' was given; it should be a valid integer"),
        ({"save_strategy": "best"}, "save_strategy: 'best' is not allowed; one of 'no', 'steps'"),
        ({"ddp_backend": "glo"}, "ddp_backend: 'glo' is not allowed; one of 'nccl', 'gloo'"),
        ({"log_level": "loud"}, "log_level: 'loud' is not allowed; one of 'detail', 'debug'"),
        ({"lr_scheduler_kwarg": {}}, "lr_scheduler_kwarg: unknown key, here and in "
         "TrainingArguments; did you mean 'lr_scheduler_kwargs'?"),
        ({"logging_steps": 2.5}, "logging_steps: 2.5 was given; give whole steps, or a share"),
        ({"save_steps": 1.5}, "save_steps: 1.5 was given; give whole steps, or a share of the"),
        ({"fp16": True, "bf16": True}, "fp16: bf16 is set as well; set one of them"),
        ({"fsdp_config": {"version": 2}}, "fsdp_config: does nothing without training.fsdp: true"),
        ({"fsdp": True, "deepspeed": {}}, "deepspeed: fsdp is set as well; set one of them"),
        ({"fsdp": "zero"}, "fsdp: "),
        ({"run_name": "a"}, "run_name: does nothing without training.report_to"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor: needs data.num_workers"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha: the noise is scaled by a row's"),
        ({"report_to": "wandbb"}, "report_to: 'wandbb' is no service of transformers; did you "
         "mean 'wandb'?"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else "",
)  # fmt: skip
def test_a_value_is_refused_when_the_recipe_is_read(override, sentence, recipe):
    with pytest.raises(RecipeError) as refused:
        recipe({f"training.{key}": value for key, value in override.items()})
    assert str(refused.value).startswith(f"training.{sentence}")


def test_services_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from varifocal.recipe.services import SERVICES

    assert set(SERVICES) == set(INTEGRATION_TO_CALLBACK)


def test_a_service_that_is_not_installed_is_refused(recipe, monkeypatch):
    from varifocal.recipe import services

    monkeypatch.setitem(services.SERVICES, "wandb", ("no_such_package",))
    with pytest.raises(RecipeError, match="report_to: no_such_package is not installed"):
        recipe({"training.report_to": ["wandb"]})
    assert recipe({"training.report_to": ["wandb"]}, check_paths=False)
    for name in services.SERVICES:
        monkeypatch.setitem(services.SERVICES, name, ("no_such_package",))
    with pytest.raises(RecipeError, match="report_to: one of azure_ml, clearml"):
        recipe({"training.report_to": "all"})


# What a field does


def metrics(page, root):
    run_training(page, root)
    return RunDirectory(root).read_metrics()


def test_the_first_step_is_logged(recipe, tmp_path):
    page = {"training.max_steps": 5, "training.logging_steps": 2}
    page |= {"tuner": {"type": "mixlora", "rank": 2}}
    lines = metrics(recipe({**page, "training.logging_first_step": True}), tmp_path / "a")
    assert [line["step"] for line in lines][:3] == [1, 2, 4]
    assert lines[0].keys() == lines[1].keys()  # what the router did, too


@pytest.mark.parametrize(("strategy", "kept"), [("no", []), ("epoch", [6, 12])])
def test_checkpoints_are_saved_as_asked(strategy, kept, recipe, tmp_path):
    page = recipe({"training.save_strategy": strategy, "training.warmup_steps": 1})
    steps = run_training(page, tmp_path / "run").steps
    found = sorted(int(p.name.rpartition("-")[2])
                   for p in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"))  # fmt: skip
    assert found == [steps * number // 12 for number in kept]


def test_noise_is_put_on_the_embeddings(recipe, tmp_path):
    plain = {"training.max_steps": 1, "data.packing": False, "tuner.dropout": 0.0}
    noisy = {**plain, "training.neftune_noise_alpha": 50.0}
    losses = [
        run_training(recipe(each), tmp_path / str(n)).loss for n, each in enumerate((plain, noisy))
    ]
    assert losses[0] != losses[1]
    again = run_training(recipe(plain), tmp_path / "again").loss
    assert again == losses[0]


def test_the_loader_is_made_as_asked(recipe, trainer_of):
    page = {"data.num_workers": 1, "data.lazy": False, "training.dataloader_prefetch_factor": 3,
            "training.dataloader_persistent_workers": True,
            "training.dataloader_multiprocessing_context": "spawn"}  # fmt: skip
    loader = trainer_of(recipe(page)).get_train_dataloader()
    base = getattr(loader, "base_dataloader", loader)
    assert (base.prefetch_factor, base.persistent_workers) == (3, True)
    assert type(base.multiprocessing_context).__name__ == "SpawnContext"
    assert base.pin_memory is False  # there is no GPU


def test_several_processes_are_joined_as_asked(recipe, trainer_of, monkeypatch, tmp_path):
    page = {"training.ddp_find_unused_parameters": True, "training.ddp_bucket_cap_mb": 7,
            "training.ddp_broadcast_buffers": False, "training.ddp_timeout": 77,
            "training.ddp_backend": "gloo"}  # fmt: skip
    trainer = trainer_of(recipe(page))
    [handler] = trainer._build_accelerator_args()["kwargs_handlers"]
    assert handler.find_unused_parameters
    assert (handler.bucket_cap_mb, handler.broadcast_buffers) == (7, False)
    assert (trainer.args.ddp_timeout, trainer.args.ddp_backend) == (77, None)  # it is alone
    handed = []
    monkeypatch.setattr(training, "TrainingArguments", lambda **given: handed.append(given))
    monkeypatch.setenv("LOCAL_RANK", "0")
    training.training_arguments(recipe(page), RunDirectory(tmp_path), 0)
    assert handed[0]["ddp_backend"] == "gloo"


def test_the_cache_is_emptied_as_asked(recipe, tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr(transformers.trainer, "clear_device_cache", lambda: emptied.append(1))
    run_training(
        recipe({"training.max_steps": 4, "training.torch_empty_cache_steps": 2}), tmp_path / "a"
    )
    assert len(emptied) == 2


def test_algorithms_are_deterministic_as_asked(recipe, trainer_of, monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    for name in ("CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    try:
        trainer_of(recipe({"training.full_determinism": True}))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_transformers_logs_as_loud_as_asked(recipe, trainer_of):
    before = transformers.logging.get_verbosity()
    try:
        trainer_of(recipe({"training.log_level": "critical"}))
        assert transformers.logging.get_verbosity() == transformers.logging.CRITICAL
    finally:
        transformers.logging.set_verbosity(before)


def test_a_service_is_told_of_every_line(recipe, tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    from varifocal.recipe import services

    told = []

    class Service(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((args.run_name, state.global_step, "loss" in logs))

    monkeypatch.setitem(services.SERVICES, "wandb", ())
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Service)
    page = {"training.max_steps": 2, "training.report_to": "wandb", "training.run_name": "mine"}
    run_training(recipe(page), tmp_path / "run")
    assert told[:2] == [("mine", 1, True), ("mine", 2, True)]


@pytest.mark.parametrize("service", ["tensorboard", "trackio", "wandb"])
def test_a_service_writes_into_the_run_unless_told_otherwise(
    recipe, tmp_path, monkeypatch, service
):
    from transformers.integrations import integration_utils

    from varifocal.recipe import services

    variable, folder = services._FOLDERS[service]
    places = []

    class Service(TrainerCallback):
        def __init__(self):
            places.append(os.environ[variable])

    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(services.SERVICES, service, ())
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, service, Service)
    page = recipe({"training.max_steps": 1, "training.report_to": service})
    run_training(page, tmp_path / "run")
    assert Path(places[0]) == tmp_path / "run" / folder
    assert variable not in os.environ
    monkeypatch.setenv(variable, "elsewhere")
    run_training(page, tmp_path / "other")
    assert places[1] == os.environ[variable] == "elsewhere"


# Runs that are trained already


def test_a_run_of_an_older_version_opens_and_is_not_trained_again(recipe, tmp_path):
    run_training(recipe({"training.max_steps": 1}), tmp_path / "run")
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(
        file.read_text().replace("training:", "training:\n  label_smoothing_factor: 0.1")
    )
    old = load_recipe(file)
    assert old.training.model_extra == {"label_smoothing_factor": 0.1}
    with pytest.raises(RecipeError, match=r"training\.label_smoothing_factor: not set here"):
        run_training(old, tmp_path / "run", resume=True)


# Files of engines

GOOD = {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto"}  # fmt: skip


@pytest.fixture
def zero(recipe, recipe_file, monkeypatch):
    """Read the recipe with a DeepSpeed file of some text, which lies next to the recipe."""
    from varifocal.recipe import reading

    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: True)

    def read(settings, **more):
        text = settings if isinstance(settings, str) else json.dumps({**GOOD, **settings})
        (recipe_file.parent / "zero.json").write_text(text)
        page = recipe_file.read_text().replace("training:", "training:\n  deepspeed: zero.json")
        (recipe_file.parent / "with.yaml").write_text(page)
        named = {f"training.{key}": value for key, value in more.items()}
        return load_recipe(recipe_file.parent / "with.yaml", named)

    return read


def test_an_engines_file_is_found_beside_the_recipe(zero, recipe_file):
    assert zero({}).training.get("deepspeed") == str(recipe_file.parent / "zero.json")
    assert zero({"fp16": {"enabled": "auto"}, "gradient_clipping": 1.0})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("{", r"zero\.json is not JSON"),
        ("[1]", r"zero\.json should hold an object"),
        ({"optimizer": {"type": "AdamW"}}, r"take optimizer out; training\.optim decides it"),
        ({"scheduler": {}}, r"take scheduler out; training\.lr_scheduler_type decides it"),
        ({"gradient_clipping": 0.3}, "gradient_clipping is 0.3, and the recipe has max_grad_norm"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, and the recipe has bf16 False"),
        ("{}", r'without gradient_clipping the recipe\'s would do nothing; add "gradient_cl'),
    ],
    ids=str,
)
def test_a_deepspeed_file_that_contradicts_is_refused(settings, sentence, zero):
    with pytest.raises(RecipeError, match=rf"training\.deepspeed: .*{sentence}"):
        zero(settings)


def test_a_deepspeed_file_that_is_not_there_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"cannot read '.*none\.json': No such file"):
        recipe({"training.deepspeed": "none.json"})


def test_batch_sizes_are_compared_where_the_processes_are_known(zero):
    from varifocal.recipe.reading import check_engine_files

    page = zero({"train_micro_batch_size_per_gpu": 4})
    with pytest.raises(RecipeError, match="train_micro_batch_size_per_gpu is 4, and the recipe"):
        check_engine_files(page.training, 2)
    page = zero({"train_batch_size": 2})
    check_engine_files(page.training, 2)
    with pytest.raises(RecipeError, match="train_batch_size is 2, and the recipe has the rows"):
        check_engine_files(page.training, 4)


def test_a_key_that_fsdp2_does_not_read_is_refused(recipe):
    page = {"training.fsdp": True, "training.fsdp_config": {"reshard_after_forwrd": True}}
    with pytest.raises(RecipeError, match="did you mean 'reshard_after_forward'"):
        recipe(page)
    both = {"training.fsdp": True, "training.fsdp_config": {"activation_checkpointing": True}}
    with pytest.raises(RecipeError, match="recompute the same layers"):
        recipe({**both, "training.gradient_checkpointing": True})
