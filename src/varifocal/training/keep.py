"""`training.keep`: what the base says to plain instructions, written down before it is trained.

The base answers the instructions, then reads its answers and stores its distribution at each of
their tokens: two forward passes of the model that is about to be trained, once. Both lie in the
cache under everything that decides them, so a resumed run and other runs find them there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from varifocal.assemble import Assembly
from varifocal.cache import cache_root
from varifocal.data.encoding.encoder import IGNORED, Encoded, Encoder, TooLongError
from varifocal.data.example import Example, Message
from varifocal.data.rows.packing import Collator, pack
from varifocal.data.rows.reference_table import ReferenceTable
from varifocal.data.rows.replay import Replay
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.locking import in_turn
from varifocal.models.decoding import decode, greedy, pad_left, stop_ids
from varifocal.models.divergence import top_k_log_probs
from varifocal.progress import StepProgress
from varifocal.recipe import DistillSection, KeepSection, Recipe
from varifocal.recipe.keep import PLAIN_INSTRUCTIONS
from varifocal.training.flops import DecoderShape, decoder_shape
from varifocal.tuners.plugin import evaluating
from varifocal.writing import atomic_directory, write_json

VERSION = 1
"""Of how answers are written and read; raised whenever others would come out."""

_TOKEN_BUDGET = 8192  # of a batch of answers, padding included
_MOST_ROWS = 64
_POSITIONS = 256  # whose logits are reduced at a time
_SAMPLES, _FACTS = "samples.npz", "facts.json"


@dataclass(frozen=True)
class Prepared:
    """The base's answers.

    Attributes:
        replay: as the rows take them.
        flops: operations that were spent on them; 0 where they were in the cache.
    """

    replay: Replay
    flops: int


def prepare_references(recipe: Recipe, parts: Assembly, progress: StepProgress) -> Prepared | None:
    """Find or make what a recipe's `training.keep` asks for; None where it asks for nothing.

    Of several processes on one machine the first makes it, and the others wait.

    Args:
        recipe: its `data` section bounds the lengths.
        parts: the base, before anything of it is trained.
        progress: called with (done, total), in answers.

    Raises:
        DataError: an instruction cannot be read, or none is short enough.
    """
    section = recipe.training.keep
    if section is None:
        return None
    prompts = prompts_of(recipe, parts.encoder)
    folder = cache_root() / "keep" / _key(recipe, parts, prompts)
    with in_turn(folder.parent, folder.name):
        is_known = (folder / _FACTS).is_file()
        if not is_known:
            _make(folder, recipe, parts, prompts, progress)
    references = _load(folder, section)
    spent = 0 if is_known else pass_flops(references.samples, section, decoder_shape(parts.base))
    return Prepared(references, spent)


def prompts_of(recipe: Recipe, encoder: Encoder) -> list[Encoded]:
    """Encode the instructions: prompts to be answered, or whole with their own answers.

    Raises:
        DataError: as `prepare`.
    """
    section = recipe.training.keep
    assert section is not None
    with_answer = section.answers == "data"
    prompts: list[Encoded] = []
    for example in _instructions(section, recipe.data.on_bad_record):
        try:
            prompt = encoder.encode(example, with_answer)
        except TooLongError:
            continue
        if with_answer or encoder.max_length is None or len(prompt) < encoder.max_length:
            prompts.append(replace(prompt, example_id=example.id))
        if len(prompts) == section.num_examples:
            break
    if not prompts:
        raise DataError(
            "training.keep.instructions: no instruction without an image is short enough for "
            "data.max_length; raise it, or give other instructions"
        )
    return prompts


def _instructions(section: KeepSection, on_bad_record: str) -> Iterator[Example]:
    """Yield the instructions without an image."""
    if not section.instructions:
        for number, text in enumerate(PLAIN_INSTRUCTIONS[: section.num_examples]):
            yield Example((Message("user", (text,)),), id=f"plain-{number}")
        return
    for source in section.instructions:
        for result in open_source(source):
            if not isinstance(result, DataError):
                if not result.images:
                    yield result
            elif on_bad_record == "fail":
                raise result


def assumed_replay(recipe: Recipe, encoder: Encoder) -> Replay | None:
    """Make up a replay whose answers are as long as they may be, for a plan without weights."""
    section = recipe.training.keep
    if section is None:
        return None
    prompts = prompts_of(recipe, encoder)
    if section.answers == "base":
        filler = [0] * section.max_new_tokens
        prompts = [_with_answer(prompt, filler, encoder.max_length) for prompt in prompts]
    return Replay(prompts, section.share)


def pass_flops(samples: Sequence[Encoded], section: KeepSection, shape: DecoderShape) -> int:
    """Count the operations of the base's passes over its answers: writing and reading them.

    Args:
        samples: prompts with their answers.
        section: says which of the two passes there are.
        shape: the base's.
    """
    total = 0
    for sample in samples:
        answer, length = len(sample.trained_ids), len(sample)
        if isinstance(section, DistillSection):
            total += shape.forward(tokens=length, pairs=length**2, positions=answer)
        if section.answers == "base":  # a token attends to those before it and to itself
            prompt = length - answer
            pairs = prompt**2 + answer * prompt + answer * (answer + 1) // 2
            total += shape.forward(tokens=length, pairs=pairs, positions=answer)
    return total


def _key(recipe: Recipe, parts: Assembly, prompts: Sequence[Encoded]) -> str:
    """Digest everything that decides the answers and the distributions."""
    section = recipe.training.keep
    assert section is not None
    settings = section.model_dump(exclude={"instructions", "share", "weight"})
    model = recipe.model
    identity = [VERSION, settings, recipe.seed, model.dtype, model.quantization, parts.fingerprint]
    identity += [parts.encoder.fingerprint, recipe.data.max_length, recipe.data.row_length]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for prompt in prompts:
        digest.update(len(prompt).to_bytes(8, "little"))
        digest.update(prompt.input_ids.tobytes() + prompt.prompt_mask.tobytes())
    return digest.hexdigest()[:24]


def _make(
    folder: Path,
    recipe: Recipe,
    parts: Assembly,
    prompts: Sequence[Encoded],
    progress: StepProgress,
) -> None:
    """Let the base answer and read, and write both into the cache."""
    section = recipe.training.keep
    assert section is not None
    samples, total = list(prompts), 2 * len(prompts)
    with evaluating(parts.base):
        if section.answers == "base":
            samples = _answered(prompts, section, parts, recipe.seed, lambda n: progress(n, total))
        arrays = _arrays(samples)
        facts: dict[str, Any] = {
            "examples": len(samples),
            "tokens": len(arrays["input_ids"]),
            "answer_tokens": int((~arrays["prompt_mask"]).sum()),
        }
        table = None
        if isinstance(section, DistillSection):
            row_length = recipe.data.row_length or recipe.data.max_length
            table = _distributions(parts.base, samples, section.top_k, row_length)
            facts["probability_covered"] = float(1 - np.exp(table[1][:, -1]).mean())
    progress(total, total)
    facts["digest"] = _digest([*arrays.values(), *(table or ())])
    with atomic_directory(folder) as staging:
        np.savez(staging / _SAMPLES, allow_pickle=False, **cast(Any, arrays))
        if table is not None:
            ReferenceTable.write(staging, *table)
        write_json(staging / _FACTS, facts)


def _arrays(samples: Sequence[Encoded]) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.concatenate([sample.input_ids for sample in samples]),
        "prompt_mask": np.concatenate([sample.prompt_mask for sample in samples]),
        "lengths": np.array([len(sample) for sample in samples], np.int64),
        "names": np.array([sample.example_id for sample in samples], np.str_),
    }


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _load(folder: Path, section: KeepSection) -> Replay:
    """Read a replay from the cache; its table stays on disk."""
    distils = isinstance(section, DistillSection)
    arrays = np.load(folder / _SAMPLES)
    ends = np.cumsum(arrays["lengths"])[:-1]
    ids = np.split(arrays["input_ids"], ends)
    masks = np.split(arrays["prompt_mask"], ends)
    samples: list[Encoded] = []
    place = 0
    for row, mask, name in zip(ids, masks, arrays["names"], strict=True):
        reference = place if distils else -1
        samples.append(Encoded(row, mask, example_id=str(name), reference=reference))
        place += int((~mask).sum())
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    table = ReferenceTable(folder) if distils else None
    return Replay(samples, section.share, table, {"type": section.type, **facts})


def _answered(
    prompts: Sequence[Encoded],
    section: KeepSection,
    parts: Assembly,
    seed: int,
    progress: Callable[[int], None],
) -> list[Encoded]:
    """Let the base write an answer to every prompt, in batches of like lengths."""
    end = parts.encoder.end_of_turn_id
    ends = stop_ids(parts.base, end)
    choose = _drawn(section.temperature, seed) if section.temperature else greedy
    answered: dict[int, Encoded] = {}
    for batch in _batches([len(prompt) for prompt in prompts], section.max_new_tokens):
        padded = pad_left([prompts[n].input_ids.tolist() for n in batch], [0] * len(batch))
        steps = decode(parts.base, padded, {}, max_new_tokens=section.max_new_tokens, choose=choose)
        answers = _until_end(steps, len(batch), ends, end)
        for number, answer in zip(batch, answers, strict=True):
            answered[number] = _with_answer(prompts[number], answer, parts.encoder.max_length)
        progress(len(answered))
    return [answered[number] for number in range(len(prompts))]


def _batches(lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts, short ones first, as many as a batch holds."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        width = lengths[number] + max_new_tokens
        if batch and (len(batch) == _MOST_ROWS or (len(batch) + 1) * width > _TOKEN_BUDGET):
            yield batch
            batch = []
        batch.append(number)
    yield batch


def _until_end(
    steps: Any, num_rows: int, ends: frozenset[int], end_of_turn: int
) -> list[list[int]]:
    """Collect each row's ids; one that ends does so with the end of turn that is trained."""
    answers: list[list[int]] = [[] for _ in range(num_rows)]
    ended = [False] * num_rows
    for ids in steps:
        for row, token in enumerate(ids.tolist()):
            if not ended[row]:
                ended[row] = token in ends
                answers[row].append(end_of_turn if ended[row] else token)
        if all(ended):
            break
    steps.close()
    return answers


def _with_answer(prompt: Encoded, answer: Sequence[int], max_length: int | None) -> Encoded:
    """Put an answer after a prompt, cut to the longest example."""
    ids = np.concatenate([prompt.input_ids, np.array(answer, np.int32)])[:max_length]
    mask = np.ones(len(ids), np.bool_)
    mask[len(prompt) :] = False
    return Encoded(ids, mask, example_id=prompt.example_id)


def _drawn(temperature: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Draw tokens from the whole distribution, on the CPU, so that a seed means one thing."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:
        # One number a row against the summed shares: `multinomial` draws one for every token.
        upto = (logits.double().cpu() / temperature).softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.rand(len(upto), 1, dtype=torch.float64, generator=generator) * upto[:, -1:]
        return torch.searchsorted(upto, drawn, right=True)[:, 0].to(logits.device)

    return choose


@torch.inference_mode()
def _distributions(
    model: nn.Module, samples: Sequence[Encoded], top_k: int, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read samples in packed rows: at each trained token, in order, what the model would say.

    Returns:
        ids int32 [N, K] and log probabilities float32 [N, K + 1].
    """
    lengths = [len(sample) for sample in samples]
    device = next(model.parameters()).device
    collate = Collator(pad_id=0)
    by_number: dict[int, tuple[Tensor, Tensor]] = {}
    for row in pack(lengths, max(row_length, *lengths)):
        batch = {
            name: tensor.to(device)
            for name, tensor in collate([[samples[number] for number in row]]).items()
        }
        positions = (batch.pop("labels")[0, 1:] != IGNORED).nonzero()[:, 0]
        logits = model(**batch, logits_to_keep=positions, use_cache=False).logits[0]
        parts = [top_k_log_probs(each, top_k) for each in logits.split(_POSITIONS)]
        ids, log_probs = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
        counts = [len(samples[number].trained_ids) for number in row]
        own = zip(ids.split(counts), log_probs.split(counts), strict=True)
        by_number |= dict(zip(row, own, strict=True))
    each = [by_number[number] for number in range(len(samples))]
    return (
        torch.cat([ids for ids, _ in each]).int().numpy(),
        torch.cat([log_probs for _, log_probs in each]).numpy(),
    )
