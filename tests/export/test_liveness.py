"""A server is asked whether an exported adapter acts: five silent failures, each of them seen."""

import json
from contextlib import contextmanager

import pytest
import torch
from fastapi.testclient import TestClient
from peft.tuners.lora.layer import LoraLayer
from typer.testing import CliRunner

from varifocal.assemble import open_model, open_run
from varifocal.cli.commands import app
from varifocal.errors import ModelError, RunError
from varifocal.exporting.export import export_run
from varifocal.exporting.liveness import PROBE, distance, verify
from varifocal.exporting.request import Order
from varifocal.serving.api import create_app
from varifocal.serving.engine import Engine
from varifocal.serving.settings import ServeSettings

LORA = {"type": "lora", "lora_alpha": 32.0}
MMA = {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": False}


@contextmanager
def served(parts):
    """Serve a model, and give what puts a body to it."""
    engine = Engine(parts.model, parts.encoder, parts.load_images)
    server = create_app(engine, name="tiny", settings=ServeSettings(port=0))
    with TestClient(server, base_url="http://localhost") as client:

        def ask(address, body):
            path = address.removeprefix("http://localhost")
            answer = client.get(path) if body is None else client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield ask


def verdict(directory, parts):
    with served(parts) as ask:
        return verify(directory, "http://localhost/v1", ask=ask).verdict


@pytest.fixture(scope="module")
def lora(make_run, tmp_path_factory):
    """A LoRA run, its LoRA and its merged model."""
    out = tmp_path_factory.mktemp("live")
    run = make_run(LORA, tower=None)
    for form in ("lora", "merged"):
        export_run(Order(run, form, num_prompts=2), out / form)
    return run, out


def loaded(parts_directory, lora):
    return open_model(parts_directory / "language", lora[1] / "lora")[1]


def test_the_run_and_its_exports_act(lora, parts_directory):
    run, out = lora
    assert verdict(out / "lora", loaded(parts_directory, lora)) == "acts"
    assert verdict(out / "lora", open_run(run.root)[1]) == "acts"
    assert verdict(out / "merged", open_model(out / "merged")[1]) == "acts"


def test_an_adapter_that_was_not_loaded_is_missing(lora, parts_directory):
    assert verdict(lora[1] / "lora", open_model(parts_directory / "language")[1]) == "is missing"


def lose_a_layer(model):
    for name, parameter in model.named_parameters():
        if "layers.1." in name and "lora_B" in name:
            torch.nn.init.zeros_(parameter)


def drop_the_scale(model):
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling = dict.fromkeys(layer.scaling, 1.0)


@pytest.mark.parametrize("fault", [lose_a_layer, drop_the_scale])
def test_an_adapter_that_is_loaded_in_part_is_seen(lora, parts_directory, fault):
    parts = loaded(parts_directory, lora)
    fault(parts.model)
    assert verdict(lora[1] / "lora", parts) == "answers otherwise"


def test_a_base_that_was_merged_already_is_seen(lora):
    out = lora[1]
    parts = open_model(out / "merged", out / "lora")[1]
    assert verdict(out / "lora", parts) == "answers otherwise"


def test_the_image_route_on_text_is_seen(make_run, tmp_path):
    out = tmp_path / "mma"
    export_run(Order(make_run(MMA), "merged", num_prompts=2), out)
    right, wrong = (open_model(out / route)[1] for route in ("text", "image"))
    assert verdict(out / "text", right) == "acts"
    assert verdict(out / "text", wrong) == "answers otherwise"


def test_a_whole_graft_is_asked_with_images(make_run, tmp_path):
    run = make_run({**MMA, "text_route": "base"})
    export_run(Order(run, "model", num_prompts=2), tmp_path / "out")
    page = json.loads((tmp_path / "out" / PROBE).read_text())
    kinds = [isinstance(one["messages"][0]["content"], list) for one in page["questions"]]
    assert kinds == [True, True, True, False]  # and text, which is left to the base
    _, parts = open_run(run.root)
    assert verdict(tmp_path / "out", parts) == "acts"


def test_an_adapter_that_changes_nothing_cannot_be_verified(make_run, tmp_path):
    run = make_run({**LORA, "lora_alpha": 1e-6}, tower=None)
    (done,) = export_run(Order(run, "lora", num_prompts=2), tmp_path / "out")
    assert "changes so little" in done.notes[-1]
    with pytest.raises(ModelError, match="no question tells it from its base"):
        verify(tmp_path / "out", "http://localhost")


def test_what_has_no_questions_says_so(tmp_path):
    with pytest.raises(RunError, match=r"has no probe\.json"):
        verify(tmp_path, "http://localhost")


def test_distances():
    one, other = {"a": 0.0}, {"b": 0.0}
    assert distance(one, one, {"a", "b"}) == 0
    assert distance(one, other, {"a", "b"}) == 1
    assert distance(one, {}, {"c"}) == 1


def test_the_verb_wants_a_kind_or_a_server(tmp_path):
    found = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert found.exit_code != 0
    assert "give --to KIND to write an export, or --verify URL" in str(found.exception)
