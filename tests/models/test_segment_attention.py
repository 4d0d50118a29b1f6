"""Attention by segment is attention with the segments' mask: outputs, gradients, whole models."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from varifocal.models.segment_attention import NAME, segments_of

POSITIONS = torch.tensor(
    [[0, 1, 2, 3, 0, 1, 0, 0, 1, 2], [*range(10)], [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]]
)


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((3, 6, 10, 8), (3, 2, 10, 8), (3, 2, 10, 8))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_mask(query, key, value, scale):
    """Every pair of the row, those of other segments masked."""
    number = torch.tensor(
        [[sum(at >= end for _, end in row) for at in range(10)] for row in segments_of(POSITIONS)]
    )
    visible = (number[:, :, None] == number[:, None]).tril()[:, None]
    key, value = (part.repeat_interleave(3, 1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~visible, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("scale", [0.35, 1.0])
def test_outputs_and_gradients_are_those_of_the_mask(scale):
    mine, theirs = inputs(), inputs()
    output = torch.ops.varifocal.segment_attention(*mine, POSITIONS, scale)
    expected = by_mask(*theirs, scale)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_operator_is_sound():
    given = (*inputs(torch.float32), POSITIONS, 0.35)
    torch.library.opcheck(torch.ops.varifocal.segment_attention, given)


def build(kind, implementation):
    torch.manual_seed(1)
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    else:
        layers = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**sizes, **heads, sliding_window=4, layer_types=layers)
        )
    model.set_attn_implementation(implementation)
    return model.double()


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_model_gives_the_logits_it_gives_with_sdpa(kind, packed):
    ids = torch.randint(1, 31, (3, 10))
    given = {"input_ids": ids, "use_cache": False}
    given |= {"position_ids": POSITIONS} if packed else {}
    one, other = (build(kind, name)(**given).logits for name in (NAME, "sdpa"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_in_evaluation_a_masks_word_counts():
    """A prepared mask may join what positions part, as rows of options after one prompt do."""
    ids = torch.randint(1, 31, (1, 6))
    visible = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    given = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 3, 4]])}
    one, other = (
        build("llama", name).eval()(**given, attention_mask=visible, use_cache=False).logits
        for name in (NAME, "sdpa")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_a_compiled_layer_trains_alike():
    ids = torch.randint(1, 31, (3, 10))
    given = {"input_ids": ids, "labels": ids, "position_ids": POSITIONS, "use_cache": False}
    model = build("llama", NAME).float()

    def gradients():
        model.zero_grad()
        model(**given).loss.backward()
        return {name: part.grad.clone() for name, part in model.named_parameters()}

    expected = gradients()
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    for layer in model.model.layers:
        layer.compile(backend=counting, dynamic=False, fullgraph=True)
    found = gradients()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert graphs


def test_left_padding_and_generation_are_as_with_sdpa():
    ids = torch.randint(1, 31, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    told = [
        build("llama", name)
        .eval()
        .generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        for name in (NAME, "sdpa")
    ]
    assert torch.equal(*told)
