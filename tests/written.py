"""What a run writes, step by step, and what it gives to a text that llama.cpp has written."""

from functools import partial

import torch
from torch import nn
from transformers import CLIPVisionModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from varifocal.exporting.parity import row_of
from varifocal.models.decoding import decode, greedy, stop_ids
from varifocal.tuners.plugin import evaluating


def greedy_answers(parts, examples, tokens):
    """Let a run write greedily.

    Returns:
        For each example its ids, without the end of turn, the step's log-probabilities
        [steps, V], and whether it came to its end of turn.
    """
    ids, steps = _write(parts, examples, tokens, greedy)
    ends = stop_ids(parts.base, parts.encoder.end_of_turn_id)
    answers = []
    for row, along in zip(ids.tolist(), steps, strict=True):
        length = next((at for at, token in enumerate(row) if token in ends), len(row))
        answers.append((row[:length], along, length < len(row)))
    return answers


def log_probabilities_along(parts, examples, texts):
    """Return a run's log-probabilities [steps, V] at each token of given texts, lists of ids."""
    longest = max(map(len, texts))
    padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    at = iter(range(longest))
    return _write(parts, examples, longest, lambda logits: padded[:, next(at)])[1]


def _write(parts, examples, tokens, choose):
    """Decode all examples as one batch; they have prompts of one length."""
    prompts, shown = [], []
    for example in examples:
        row, images, _ = row_of(parts, example, None)
        prompts.append(row)
        shown.append(images)
    rows = {name: torch.cat([row[name] for row in prompts]) for name in prompts[0]}
    images = {name: torch.cat([one[name] for one in shown]) for name in shown[0]}
    steps = []

    def note(logits):
        steps.append(logits.log_softmax(-1))
        return choose(logits)

    with evaluating(parts.model):
        written = list(decode(parts.model, rows, images, max_new_tokens=tokens, choose=note))
    return torch.stack(written, 1), torch.stack(steps, 1)


class _Table(nn.Module):
    """An activation that ggml looks up by its input in float16, and finds in float16."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        """Compute it in the table's numbers, [...] -> [...]."""
        return self.compute(x.half().float()).half().float()


def compute_as_llama_cpp(parts):
    """Give a run's tower and projector llama.cpp's arithmetic on the CPU: float16 in places.

    Pixels and the patches' matrix are rounded, activations are tables, the projector's GELU is the
    tanh approximation, and the tower's attention is ggml's flash attention, whatever the language
    model's is set to.
    """
    tower = parts.base.vision_tower.model
    quick = tower.config.hidden_act == "quick_gelu"
    inside = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else _tanh_gelu
    for name, part in list(parts.base.named_modules()):
        if name.startswith("vision_tower") and name.endswith("activation_fn"):
            parts.base.set_submodule(name, _Table(inside))
        elif name.startswith("connector") and isinstance(part, nn.GELU):
            parts.base.set_submodule(name, _Table(_tanh_gelu))
    patches = next(part for part in tower.modules() if isinstance(part, nn.Conv2d))
    patches.weight.data = patches.weight.half().float()
    patches.register_forward_pre_hook(lambda part, pixels: (pixels[0].half().float(),))
    last = isinstance(tower, CLIPVisionModel)
    attention = partial(_flash_attention, class_token_last=last)
    ALL_ATTENTION_FUNCTIONS.register("ggml", attention)
    tower.set_attn_implementation("ggml")


def _tanh_gelu(x):
    return nn.functional.gelu(x, approximate="tanh")


def _flash_attention(module, query, key, value, attention_mask, scaling, class_token_last, **other):
    """Attend as ggml does for fewer than 64 queries: the sum of values is rounded at each key.

    Letters: N images, A heads, T tokens, C a head's width; [N, A, T, C] -> [N, T, A, C].
    """
    if class_token_last:  # the order matters, since a sum is rounded
        key, value = key.roll(-1, 2), value.roll(-1, 2)
    scores = query.half().float() @ key.half().float().transpose(2, 3) * scaling
    most = torch.full_like(scores[..., :1], -torch.inf)
    total, summed = torch.zeros_like(most), torch.zeros_like(query)
    for score, shown in zip(scores.split(1, -1), value.half().float().split(1, 2), strict=True):
        larger = torch.maximum(most, score)
        shrunk, weight = (most - larger).exp(), (score - larger).exp()
        summed = (summed * shrunk).half().float()
        summed = (summed + shown * weight).half().float()
        total, most = total * shrunk + weight, larger
    return (summed / total).transpose(1, 2), None
