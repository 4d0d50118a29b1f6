"""An engine leaves the model that it was given as it is, whatever the tuner."""

from __future__ import annotations

import copy
import hashlib
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.serving.adapter_routes import copy_sharing_weights
from varifocal.serving.engine import Engine, Sampling
from varifocal.tuners import MixLoraConfig, MMAConfig

ASKED = (Message("user", ("What is a magnet?",)),)
CONFIGS = {
    "mma": lambda: MMAConfig(router_temperature=1.0),
    "lora": lambda: LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "head": lambda: LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    "mixlora": lambda: MixLoraConfig(num_factors=8, rank=2, target_modules=["q_proj"]),
}


@pytest.fixture(params=[*CONFIGS, "whole"])
def tuned(request, llama) -> nn.Module:
    torch.manual_seed(4)
    if request.param == "whole":
        return llama.train()
    model = get_peft_model(llama, CONFIGS[request.param]())
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "mma_", "modality_embedding")):
            nn.init.normal_(parameter, std=0.3)
    model.train()
    model.get_base_model().model.layers[0].mlp.eval()  # modes may differ by module
    return model


def state(model: nn.Module) -> tuple[str, list[object]]:
    """A checksum over the weights, and all else that an engine might change."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    rest: list[object] = [
        (
            name,
            part.training,
            "forward" in vars(part),
            getattr(part, "_disable_adapters", None),
            getattr(part, "context", None),
            len(part._forward_hooks) + len(part._forward_pre_hooks),
        )
        for name, part in model.named_modules()
    ]
    rest += [(p.data_ptr(), p.requires_grad, p.dtype) for p in model.parameters()]
    rest.append(model.generation_config.to_dict())  # type: ignore[operator, union-attr]
    return digest.hexdigest(), rest


def generated(model: nn.Module, encoder: Encoder, *, adapter: bool = True) -> list[int]:
    """What transformers' own generation writes, greedily; the modes are put back."""
    ids = encoder.encode(Example(ASKED), with_answer=False).input_ids
    prompt = torch.from_numpy(ids).long()[None]
    modes = {part: part.training for part in model.modules()}
    model.eval()
    base = model.disable_adapter if hasattr(model, "peft_config") and not adapter else nullcontext
    with base():
        output = model.generate(  # type: ignore[operator]
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12
        )
    for part, mode in modes.items():
        part.training = mode
    return output[0, len(ids) :].tolist()


def test_the_model_answers_as_before_while_an_engine_serves_and_after(tuned, tokenizer) -> None:
    encoder = Encoder(tokenizer)
    wanted = [generated(tuned, encoder, adapter=adapter) for adapter in (True, False)]
    if hasattr(tuned, "peft_config"):
        assert wanted[0] != wanted[1]
    before = state(tuned)
    engine = Engine(tuned, encoder)
    assert state(tuned) == before
    answer = engine.answer(ASKED, Sampling(12))
    running = engine.submit(ASKED, Sampling(400))
    next(iter(running))  # it is being answered now
    assert [generated(tuned, encoder, adapter=adapter) for adapter in (True, False)] == wanted
    running.cancel()
    if engine.has_adapter:
        engine.answer(ASKED, Sampling(12), adapter=False)
    assert engine.answer(ASKED, Sampling(12)) == answer
    assert answer == tokenizer.decode(wanted[0], skip_special_tokens=True)
    engine.close()
    assert state(tuned) == before
    assert [generated(tuned, encoder, adapter=adapter) for adapter in (True, False)] == wanted


def test_a_graft_with_mma_answers_images_as_before(seeing, load_images, image) -> None:
    model, encoder = seeing
    asked = (Message("user", (image("red"), "What is it?")),)
    encoded = encoder.encode(Example(asked), with_answer=False)
    given = {"input_ids": torch.from_numpy(encoded.input_ids).long()[None]}
    given |= load_images(encoded.images)
    wanted = model(**given).logits  # in the first run transformers adds hooks to the tower
    before = state(model)
    engine = Engine(model, encoder, load_images)
    assert engine.stats().is_folded
    engine.answer(asked, Sampling(5))
    assert torch.equal(model(**given).logits, wanted)
    engine.close()
    assert state(model) == before


def test_the_copy_shares_every_tensor_and_its_hooks_are_its_own(seeing) -> None:
    model, _ = seeing
    made = copy_sharing_weights(model)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    copied = dict(made.named_parameters()) | dict(made.named_buffers())
    assert own.keys() == copied.keys()
    assert all(own[name] is copied[name] for name in own)
    assert not {id(part) for part in model.modules()} & {id(part) for part in made.modules()}
    ids = torch.arange(60, 70)[None]
    wanted = copy.deepcopy(model)(input_ids=ids, modality_ids=torch.ones_like(ids)).logits
    assert torch.equal(made(input_ids=ids, modality_ids=torch.ones_like(ids)).logits, wanted)
