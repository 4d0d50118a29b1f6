"""What reads a model leaves it as it was: weights, modes, and what asks for gradients."""

import hashlib

import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from tiny import byte_tokenizer
from varifocal.analysis.gradients import AdapterGradient
from varifocal.analysis.routing import measure_routing
from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.runner import run
from varifocal.tuners import MixLoraConfig, MMAConfig

SAID = Example((Message("user", ("Say x",)), Message("assistant", ("x",))))
CONFIGS = {
    "mma": lambda: MMAConfig(bottleneck_dim=2),
    "mixlora": lambda: MixLoraConfig(num_factors=4, rank=2, target_modules=["q_proj"]),
}


def state(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    modes = [(name, part.training) for name, part in model.named_modules()]
    asks = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    return digest.hexdigest(), modes, asks


@pytest.mark.parametrize("kind", CONFIGS)
def test_analysis_and_evaluation_leave_a_model_in_training_as_it_was(language, kind, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(language)
    model = get_peft_model(base, CONFIGS[kind]()).train()
    frozen = next(p for name, p in model.named_parameters() if kind[:3] in name)
    frozen.requires_grad_(False)  # the caller's own choice
    encoder = Encoder(byte_tokenizer())
    before, sample = state(model), encoder.encode(SAID)
    gradient = AdapterGradient(model)
    assert state(model) == before
    assert gradient(sample).abs().sum() > 0
    assert state(model) == before
    measure_routing(model, {"one": [sample], "two": [sample]})
    asked = Example(SAID.messages, choices=("x", "y"), answer_index=0)
    asker = EncodedAsker(Assembly(model, encoder.tokenizer, encoder, None, None, None))
    for method in ("likelihood", "generate"):
        benchmark = choice_benchmark("one", "here", method, max_new_tokens=2)
        run(benchmark, items_of([asked]), asker, tmp_path / method)
    assert state(model) == before
