"""Several runs over one base in one server: each answers as alone, and the base is held once."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from varifocal.cli.commands import app
from varifocal.data.example import Message
from varifocal.errors import VarifocalError
from varifocal.serving.adapter_routes import share_equal_weights
from varifocal.serving.api import create_app
from varifocal.serving.engine import Engine, Sampling
from varifocal.tuners import MMAConfig

QUESTIONS = ("What is a magnet?", "Colour?")


def tuned(graft, config, seed: int):
    """Put an adapter that does something on a copy of a graft, as a second run's base is."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(graft), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


@pytest.fixture
def models(graft_of):
    """Three runs over one base, each with its own copy of it."""
    mma = tuned(graft_of[0], MMAConfig(router_temperature=1.0), 1)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"])
    return {
        "mma": mma,
        "lora": tuned(graft_of[0], lora, 2),
        "other": tuned(graft_of[0], copy.deepcopy(lora), 3),
    }


def adapter_names(model) -> set[str]:
    trained = ("lora_", "mma_", "modality_embedding", "router")
    return {name for name, _ in model.named_parameters() if any(part in name for part in trained)}


def test_equal_weights_are_held_once(models) -> None:
    first, *others = models.values()
    held = {tensor.data_ptr() for tensor in first.parameters()}
    opened = [first]
    for model in others:
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        share_equal_weights(model, opened)
        opened.append(model)
        own = {name for name, tensor in model.named_parameters() if tensor.data_ptr() not in held}
        assert own == adapter_names(model)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())


def test_each_run_answers_as_alone_in_one_server(models, graft_of, load_images, serving) -> None:
    encoder = graft_of[1]

    def engines() -> dict[str, Engine]:
        return {name: Engine(model, encoder, load_images) for name, model in models.items()}

    messages = {text: [Message("user", (text,))] for text in QUESTIONS}
    alone = {}
    for name, engine in engines().items():
        for text in QUESTIONS:
            for adapter in (True, False):
                called = name if adapter else f"{name}:base"
                alone[called, text] = engine.answer(messages[text], Sampling(12), adapter=adapter)
        engine.close()
    assert len({alone[name, QUESTIONS[0]] for name in models}) == 3
    opened = []
    for model in models.values():
        share_equal_weights(model, opened)
        opened.append(model)
    first, *others = engines().items()
    with (
        serving(first[1], name=first[0], others=dict(others)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        names = [model.id for model in client.models.list()]
        assert names == [each for name in models for each in (name, f"{name}:base", f"{name}:text")]

        def ask(asked: tuple[str, str]) -> str:
            model, text = asked
            turns = [{"role": "user", "content": text}]
            answer = client.chat.completions.create(model=model, messages=turns, max_tokens=12)
            return answer.choices[0].message.content

        todo = [*alone] * 2
        assert list(pool.map(ask, todo)) == [alone[asked] for asked in todo]
        with pytest.raises(openai.NotFoundError, match="did you mean 'lora'"):
            ask(("lore", "Hm"))


def test_names_of_several_runs(tmp_path) -> None:
    for folder in ("a/demo", "b/demo"):
        (tmp_path / folder).mkdir(parents=True)
    runs = [str(tmp_path / "a" / "demo"), str(tmp_path / "b" / "demo")]
    result = CliRunner().invoke(app, ["serve", *runs])
    assert isinstance(result.exception, VarifocalError)
    assert "two models would be called demo" in str(result.exception)
    result = CliRunner().invoke(app, ["serve", *runs, "--name", "x"])
    assert "--name is for a single model" in str(result.exception)


def test_the_figures_of_all_engines_are_added_up(models, graft_of, load_images) -> None:
    from fastapi.testclient import TestClient

    engines = {name: Engine(model, graft_of[1], load_images) for name, model in models.items()}
    for engine in engines.values():
        engine.answer([Message("user", ("Hi",))], Sampling(3))
    main = engines.pop("mma")
    with TestClient(
        create_app(main, name="mma", others=engines), base_url="http://localhost"
    ) as client:
        figures = client.get("/metrics").text
        assert client.get("/health").json() == {
            "status": "ok",
            "model": "mma",
            "running": 0,
            "waiting": 0,
        }
    assert "varifocal_completion_tokens_total 9.0" in figures
    assert 'varifocal_requests_finished_total{reason="length"} 3.0' in figures
