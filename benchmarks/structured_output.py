"""Write answers to random JSON schemas, and as many tokens without a schema, and compare times.

Every answer is validated by a library of its own (jsonschema-rs). The schemas bound their strings,
lists and numbers, so that a model that writes at random comes to an end, too.

    python -m benchmarks.structured_output [--model smollm2-135m-instruct] [--schemas 500]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import jsonschema_rs
import torch

from varifocal.assemble import open_model
from varifocal.data.example import Message
from varifocal.serving.engine import Engine, Request, Sampling

MAX_TOKENS = 1024
_WORDS = ("colour", "size", "name", "is_magnet", "poles", "größe", 'a "quoted" key', "n")


def random_schema(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    """Compose an object's schema of one to four keys.

    Args:
        chance: where all decisions come from.
        depth: how many objects and lists may be inside it.
    """
    names = chance.sample(_WORDS, chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(chance, depth) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
        "additionalProperties": False,
    }


def _value(chance: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "pattern", "integer", "number", "boolean", "null", "enum", "const"]
    if depth:
        kinds += ["object", "array", "any"] * 2
    kind = chance.choice(kinds)
    if kind == "object":
        return random_schema(chance, depth - 1)
    if kind == "array":
        least = chance.randint(0, 2)
        items = _value(chance, depth - 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}
    if kind == "any":
        return {"anyOf": [_value(chance, depth - 1) for _ in range(2)]}
    return _scalar(chance, kind)


def _scalar(chance: random.Random, kind: str) -> dict[str, Any]:
    low = chance.randint(-1000, 1000)
    bounds = {"minimum": low, "maximum": low + chance.randint(0, 5000)}
    scalars: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": low % 3, "maxLength": 3 + low % 9},
        "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "integer": {"type": "integer", **bounds},
        "number": {"type": "number", **bounds, "multipleOf": 0.25},
        "enum": {"enum": ["north", "south", low, None, 2.5, True][: 1 + low % 6]},
        "const": {"const": {"pole": low}},
    }
    return scalars.get(kind, {"type": kind})


def schemas_of(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Compose schemas, the same ones for the same seed."""
    chance = random.Random(seed)
    return [random_schema(chance) for _ in range(num)]


def write(engine: Engine, samplings: list[Sampling]) -> tuple[list[Request], list[str], float]:
    """Ask for an answer with each sampling: requests, answers and the seconds for all of them."""
    start = time.perf_counter()
    question = [Message("user", ("Describe a magnet.",))]
    requests = [engine.submit(question, sampling) for sampling in samplings]
    answers = ["".join(piece.text for piece in request) for request in requests]
    return requests, answers, time.perf_counter() - start


def main() -> None:
    """Print how many answers are valid and the ratio of the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    _, parts = open_model(given.model)
    options = {"max_batch": given.batch, "max_queue": given.schemas}
    engine = Engine(parts.model, parts.encoder, **options)
    free = Engine(parts.model, parts.encoder, **options)
    free.stop_ids = frozenset()
    for warm in (engine, free):
        warm.answer([Message("user", ("Hi",))], Sampling(4, json_schema='{"type": "object"}'))
    schemas = schemas_of(given.schemas)
    samplings = [
        Sampling(MAX_TOKENS, temperature=1.0, seed=number, json_schema=json.dumps(schema))
        for number, schema in enumerate(schemas)
    ]
    requests, answers, seconds = write(engine, samplings)
    lengths = [request.completion_tokens for request in requests]
    others = [
        Sampling(length, temperature=1.0, seed=number) for number, length in enumerate(lengths)
    ]
    _, _, without = write(free, others)
    ended = [request.finish_reason == "stop" for request in requests]
    valid = [
        ends and jsonschema_rs.is_valid(schema, json.loads(answer))
        for ends, schema, answer in zip(ended, schemas, answers, strict=True)
    ]
    print(f"{sum(valid)} of {len(valid)} answers are valid, {len(ended) - sum(ended)} were cut")
    print(
        f"{sum(lengths)} tokens: {seconds:.1f} s with schemas, {without:.1f} s without, "
        f"ratio {seconds / without:.3f}"
    )


if __name__ == "__main__":
    main()
