"""Whether the program that serves an export answers as the run: questions that tell, and asking.

A served adapter can be loaded and still do nothing, or half of it. So next to an export lie a few
questions, chosen because the trained model and the base model answer them differently, with what
both would write next. A server that gives log-probabilities is asked the same.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from math import exp
from pathlib import Path
from typing import Any, Literal, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL.Image import Resampling

from varifocal.assemble import Assembly
from varifocal.data.example import Example, Image
from varifocal.errors import DataError, ModelError, RunError
from varifocal.exporting.parity import prompts, references
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.writing import write_json

PROBE = "probe.json"
_TOP = 20  # log-probabilities that OpenAI's API gives of a token
_CANDIDATES, _ASKED = 8, 3
_NEAR = 0.06  # 8-bit weights move a first token's distribution by half of that
_TELLS = 0.2

Verdict = Literal["acts", "is missing", "answers otherwise"]
Next = dict[str, float]


@dataclass(frozen=True)
class ProbeQuestion:
    """What a server is asked, and what it would write next.

    Attributes:
        messages: as OpenAI's API takes them.
        trained: log-probabilities of the likeliest next tokens, by their text, of the run.
        base: likewise, without the adapter; for text that a run leaves to the base, with it.
    """

    messages: list[dict[str, Any]]
    trained: Next
    base: Next

    @property
    def tells(self) -> float:
        """How far the two answers are apart, 0 to 1."""
        return distance(self.trained, self.base, self.trained.keys() | self.base.keys())


def distance(first: Next, second: Next, tokens: Sequence[str] | Any) -> float:
    """Return how far two distributions over some tokens are apart: 0 for equal, 1 for disjoint."""
    pairs = [(_probability(first, token), _probability(second, token)) for token in tokens]
    total = sum(a + b for a, b in pairs)
    return sum(abs(a - b) for a, b in pairs) / total if total else 1.0


def _probability(table: Next, token: str) -> float:
    return exp(table[token]) if token in table else 0.0


def write_probe(
    parts: Assembly,
    directory: Path,
    *,
    modality: int | None,
    takes_images: bool,
    text_is_base: bool,
) -> bool:
    """Write the questions that tell an adapter from its base.

    Args:
        parts: the trained model, with an adapter.
        directory: the export's.
        modality: the route that the export holds, 0 text or 1 image; None where rows differ.
        takes_images: whether the export takes images; else its route is asked by text.
        text_is_base: whether the server has to answer text as the base model.

    Returns:
        Whether a question tells them apart.
    """
    images = takes_images and modality != 0
    examples = _candidates(parts, images=images)
    route = None if takes_images and images else modality
    with_adapter = [_next(parts, example, route) for example in examples]
    with _adapter_off(parts):
        without = [_next(parts, example, route) for example in examples]
    made = [
        ProbeQuestion(_messages(example), trained, base)
        for example, trained, base in zip(examples, with_adapter, without, strict=True)
    ]
    chosen = sorted(made, key=lambda question: -question.tells)[:_ASKED]
    tells_apart = bool(chosen) and chosen[0].tells >= _TELLS
    if text_is_base and images:
        chosen += _text_question(parts)
    page = {"tells": tells_apart, "questions": [asdict(question) for question in chosen]}
    write_json(directory / PROBE, page)
    return tells_apart


def _candidates(parts: Assembly, *, images: bool) -> list[Example]:
    """Compose questions, those alone that the run's `data.max_length` has room for."""
    asked = [_without_answer(example) for example in prompts(_CANDIDATES, images=images)]
    return [
        example for example in (_at_size(each, parts) for each in asked) if _fits(example, parts)
    ]


def _fits(example: Example, parts: Assembly) -> bool:
    try:
        parts.encoder.encode(example, with_answer=False)
    except DataError:
        return False
    return True


def _text_question(parts: Assembly) -> list[ProbeQuestion]:
    """Find the text whose answer the image route would change most; the base's is wanted."""
    examples = _candidates(parts, images=False)
    questions = [
        ProbeQuestion(_messages(example), _next(parts, example, 0), _next(parts, example, 1))
        for example in examples
    ]
    return sorted(questions, key=lambda question: -question.tells)[:1]


@dataclass(frozen=True)
class Verified:
    """What a server said.

    Attributes:
        verdict: whether the adapter acts, is missing, or something else answers.
        to_trained: largest distance of an answer to the run's, 0 to 1.
        to_base: largest distance of an answer to the base's, 0 to 1.
        questions: how many were asked.
    """

    verdict: Verdict
    to_trained: float
    to_base: float
    questions: int

    def sentence(self) -> str:
        """Say it."""
        sentence = {
            "acts": "it answers as the run",
            "is missing": "it answers as the base model does without it",
            "answers otherwise": "it answers neither as the run nor as the base model: look at "
            "the adapter's layers and scale, the chat template, the images' size, and whether the "
            "base is the one that was trained on",
        }[self.verdict]
        return (
            f"the adapter {self.verdict}: {sentence} ({self.questions} questions; of the next "
            f"token's probabilities {self.to_trained:.1%} are elsewhere than the run's, "
            f"{self.to_base:.1%} than the base's)"
        )


def verify(
    directory: Path,
    url: str,
    model: str | None = None,
    ask: Callable[[str, dict[str, Any] | None], dict[str, Any]] | None = None,
) -> Verified:
    """Put an export's questions to a server with OpenAI's API.

    Args:
        directory: the export.
        url: the server's, with /v1 or without.
        model: the name under which it serves the export; by default the first that it lists.
        ask: posts a body (or gets, without one) to an address; for tests.

    Raises:
        RunError: the folder has no questions, or the server cannot be asked.
        ModelError: no question of this export tells it from its base.
    """
    file = directory / PROBE
    if not file.is_file():
        raise RunError(
            f"{directory} has no {PROBE}: name the folder of an exported adapter or model, with "
            "its route (…/image), and export it again where an older Varifocal has written it"
        )
    page = json.loads(file.read_text())
    if not page["tells"]:
        raise ModelError(
            f"the adapter of {directory} changes so little that no question tells it from its "
            "base; train it for longer, or compare scores instead"
        )
    call = ask or _call
    root = url.rstrip("/").removesuffix("/v1") + "/v1"
    name = model or call(f"{root}/models", None)["data"][0]["id"]
    questions = [ProbeQuestion(**entry) for entry in page["questions"]]
    answers = [_ask(call, f"{root}/chat/completions", name, question) for question in questions]
    pairs = list(zip(questions, answers, strict=True))
    trained = max(distance(q.trained, a, q.trained.keys() | q.base.keys()) for q, a in pairs)
    base = max(distance(q.base, a, q.trained.keys() | q.base.keys()) for q, a in pairs[:_ASKED])
    verdict: Verdict = "answers otherwise"
    if trained <= _NEAR:
        verdict = "acts"
    elif base <= _NEAR:
        verdict = "is missing"
    return Verified(verdict, trained, base, len(questions))


def _ask(call: Any, address: str, name: str, question: ProbeQuestion) -> Next:
    """Return the log-probabilities that a server gives of its next token."""
    body = {
        "model": name,
        "messages": question.messages,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": _TOP,
    }
    answer = call(address, body)
    try:
        first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError) as error:
        raise RunError(
            f"{address} gives no log-probabilities (logprobs, top_logprobs), by which an adapter "
            "is told from its base; start it with them (vLLM: --max-logprobs 20)"
        ) from error
    return {entry["token"]: float(entry["logprob"]) for entry in first}


def _call(address: str, body: dict[str, Any] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers)) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace")
        raise RunError(f"{address} refuses: {error.code} {said}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{address} cannot be asked: {error}") from error


def _next(parts: Assembly, example: Example, modality: int | None) -> Next:
    """Return the likeliest next tokens; those that are no text alone are left out."""
    (case,) = references(parts, [example], modality)
    best = case.logits[-1].log_softmax(-1).topk(min(_TOP, case.logits.shape[-1]))
    tokenizer = parts.encoder.tokenizer
    texts = [str(tokenizer.decode([int(token)])) for token in best.indices]
    special = set(tokenizer.all_special_tokens)
    return {
        text: float(value)
        for text, value in zip(texts, best.values, strict=True)
        if text and "\ufffd" not in text and text not in special
    }


@contextmanager
def _adapter_off(parts: Assembly) -> Iterator[None]:
    """Switch the adapter's layers off; modules that were trained whole, a connector, stay."""
    layers = [part for part in parts.model.modules() if isinstance(part, BaseTunerLayer)]
    trained = [p for p in cast(PeftModel, parts.model).parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        parts.model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _without_answer(example: Example) -> Example:
    return replace(example, messages=example.messages[:-1])


def _at_size(example: Example, parts: Assembly) -> Example:
    """Scale images to a graft's own size, which no server scales again."""
    base = parts.base
    if not isinstance(base, GraftedForConditionalGeneration):
        return example
    side = base.vision_tower.image_size
    messages = tuple(
        replace(message, content=tuple(_scaled(part, side) for part in message.content))
        for message in example.messages
    )
    return replace(example, messages=messages)


def _scaled(part: Any, side: int) -> Any:
    if not isinstance(part, Image):
        return part
    file = BytesIO()
    part.open().convert("RGB").resize((side, side), Resampling.BICUBIC).save(file, format="PNG")
    return Image(data=file.getvalue())


def _messages(example: Example) -> list[dict[str, Any]]:
    """Write a conversation as OpenAI's API takes it."""
    return [
        {"role": message.role, "content": _content(message.content)} for message in example.messages
    ]


def _content(parts: Sequence[Any]) -> str | list[Mapping[str, Any]]:
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    return [_part(part) for part in parts]


def _part(part: Any) -> Mapping[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    packed = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{packed}"}}
