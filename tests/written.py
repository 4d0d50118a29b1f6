"""What a run writes, step by step, and what it gives to a text that llama.cpp has written."""

from functools import partial

import torch
from torch import nn
from transformers import CLIPVisionModel
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from varifocal.exporting.parity import row_of
from varifocal.models.decoding import decode, greedy, pad_left, stop_ids
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
    """Decode all examples as one batch."""
    prompts, modalities, shown = [], [], []
    for example in examples:
        row, images, _ = row_of(parts, example, None)
        prompts.append(row["input_ids"][0].tolist())
        modalities.append(int(row["modality_ids"][0, 0]))
        shown.append(images)
    rows = pad_left(prompts, modalities)
    images = {name: torch.cat([one[name] for one in shown]) for name in shown[0]}
    steps = []

    def note(logits):
        steps.append(logits.log_softmax(-1))
        return choose(logits)

    with evaluating(parts.model):
        written = list(decode(parts.model, rows, images, max_new_tokens=tokens, choose=note))
    return torch.stack(written, 1), torch.stack(steps, 1)


def first_difference(parts, own, pieces, ended):
    """Return how far apart two tokens were where llama.cpp's answer parts from the run's, or 0.0.

    Args:
        parts: the run.
        own: an answer of `greedy_answers`.
        pieces: llama.cpp's answer, a text for each token.
        ended: whether it came to its end of turn.
    """
    ids, steps, own_ended = own
    ids = [*ids, *[parts.encoder.end_of_turn_id] * own_ended]
    tokenizer = parts.encoder.tokenizer
    expected = [piece(tokenizer, token) for token in ids]
    found = [*pieces, *[expected[-1] if own_ended else ""] * ended]
    if expected == found:
        return 0.0
    at = next(i for i, pair in enumerate(zip(expected, found, strict=False)) if len({*pair}) > 1)
    near = steps[at].topk(20).indices.tolist()
    other = [float(steps[at, token]) for token in near if piece(tokenizer, token) == found[at]]
    return float(steps[at, ids[at]]) - max(other, default=-float("inf"))


def piece(tokenizer, token):
    """Spell a token as llama.cpp does: its text, or its byte."""
    name = tokenizer.convert_ids_to_tokens(token)
    if token in tokenizer.all_special_ids:
        return name
    raw = bytes(_BYTES[letter] for letter in name)
    return (
        f"byte: \\x{raw[0]:02x}" if len(raw) == 1 and raw[0] > 127 else raw.decode(errors="replace")
    )


_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


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
