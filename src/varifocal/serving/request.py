"""What is asked of the engine and what comes back: sampling, pieces of text, one request."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch

from varifocal.data.encoding.encoded import Encoded
from varifocal.errors import DataError, VarifocalError
from varifocal.models.decoding import Choose, greedy, sampler
from varifocal.models.likelihood import Ids
from varifocal.serving.structured_output import AnswerParser

Route = Literal["text", "image", "base"]
"""What answers: the adapter as it treats text or images, or the model without its adapter."""

FinishReason = Literal["stop", "length", "cancelled", "error"]

MAX_LOGPROBS = 20
"""Most of the likeliest tokens that are told next to each token."""


class QueueFull(VarifocalError):  # noqa: N818 - the name says what is wrong
    """As many requests wait as may; ask again later."""


class ContextLengthError(DataError):
    """A conversation has more tokens than the model can read.

    Attributes:
        prompt_tokens: its length, or the least that it can be.
        window: the most that the model reads.
    """

    def __init__(self, prompt_tokens: int, window: int, *, at_least: bool = False) -> None:
        size = f"at least {prompt_tokens}" if at_least else f"{prompt_tokens}"
        super().__init__(
            f"the conversation takes {size} tokens, the model reads at most {window}; "
            "make it shorter or begin a new one"
        )
        self.prompt_tokens, self.window = prompt_tokens, window


class EngineClosed(VarifocalError):  # noqa: N818 - the name says what is wrong
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many there may be.

    Attributes:
        max_new_tokens: most tokens of an answer.
        temperature: 0 takes the likeliest token; above 0, chance grows with it.
        top_p: with a temperature: sample from the likeliest tokens that hold this probability.
        seed: with a temperature: the same seed gives the same answer; None is different every time.
        stop: texts before which the answer ends; they are not part of it.
        logprobs: None tells no log-probabilities; n tells each token's, and the n likeliest
            tokens' next to it. They are the model's own, before temperature, top_p and schema.
        json_schema: a JSON schema, as text, that the answer follows; None writes freely.
        allowed_answers: the answer is the likeliest of these, and each one's probability comes with
            it (`Request.answer_scores`); none allows any. It takes no temperature and no schema.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    json_schema: str | None = None
    allowed_answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop must be a tuple of texts, none empty, not {self.stop!r}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be from 0 to {MAX_LOGPROBS}, not {self.logprobs}")
        answers = self.allowed_answers
        if isinstance(answers, str) or not all(answers) or len({*answers}) < len(answers):
            raise ValueError(f"allowed_answers must be different texts, none empty, not {answers}")
        if answers and (self.temperature or self.json_schema is not None):
            raise ValueError("allowed_answers goes without temperature and json_schema")

    def chooser(self) -> Choose:
        """Return the function from logits to ids, with a chance of its own."""
        if self.temperature == 0:
            return greedy
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return sampler(self.temperature, self.top_p, generator)


@dataclass(frozen=True)
class SampledToken:
    """One token of an answer.

    Attributes:
        token: its text; half a character shows as a replacement character.
        logprob: its natural log-probability.
        bytes: its text in UTF-8, of half a character its own bytes where the tokenizer tells them.
        top: the likeliest tokens in its place, best first: text, log-probability, bytes.
    """

    token: str
    logprob: float
    bytes: bytes
    top: tuple[tuple[str, float, bytes], ...] = ()


@dataclass(frozen=True)
class AnswerScore:
    """How likely an allowed answer is.

    Attributes:
        text: the answer.
        logprob: the sum of its tokens' natural log-probabilities after the prompt, with the end of
            turn.
        probability: among the allowed answers; theirs add up to 1.
    """

    text: str
    logprob: float
    probability: float


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: whole characters; never empty but in the last piece, and there only next to logprobs.
        logprobs: of the tokens that begin in this text, if they were asked for.
    """

    text: str
    logprobs: tuple[SampledToken, ...] = ()


_numbers = itertools.count(1)


class Request:
    """One conversation that waits for its answer, is being answered, or is done.

    Take its pieces from one place: `for piece in request` or `async for piece in
    request.pieces()`. Both raise the request's error where it failed.

    Attributes:
        id: a number of its own in this process.
        sampling: as it was asked.
        route: which route answers.
        encoded: the prompt.
        prompt_tokens: its length.
        completion_tokens: tokens chosen so far, the end of turn included.
        cached_tokens: how many of the prompt's tokens were not read again.
        continued_tokens: those of them that are a whole earlier exchange, prompt and answer. Who
            sends these knows them already; a shared beginning alone would tell of other prompts.
        client: whose request it is; only the same client's prompts are gone on from.
        parser: says which tokens may come next; None where any may.
        options: token ids of each of `sampling.allowed_answers`.
        answer_scores: of each of them, in that order, once they are scored.
        finish_reason: None until it is done; "stop" is an end of turn or a stop word.
        error: what went wrong, where finish_reason is "error".
    """

    def __init__(
        self,
        encoded: Encoded,
        sampling: Sampling,
        route: Route,
        client: str = "",
        parser: AnswerParser | None = None,
        options: Sequence[Ids] = (),
    ) -> None:
        self.id = next(_numbers)
        self.encoded = encoded
        self.sampling = sampling
        self.route: Route = route
        self.client = client
        self.parser = parser
        self.options = tuple(options)
        self.answer_scores: tuple[AnswerScore, ...] = ()
        self.prompt_tokens = len(encoded)
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.continued_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: VarifocalError | None = None
        self.is_cancelled = False
        self.on_cancel: Callable[[Request], None] | None = None
        self._pieces: deque[Piece] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Stop answering; nothing happens to one that is done. Any thread may call it."""
        if self.finish_reason is None:
            self.is_cancelled = True
            if self.on_cancel is not None:
                self.on_cancel(self)

    def __iter__(self) -> Iterator[Piece]:
        """Wait for each piece; raise the error of a request that failed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self.finish_reason)
                piece = self._pieces.popleft() if self._pieces else None
            if piece is None:
                break
            yield piece
        if self.error is not None:
            raise self.error

    async def pieces(self) -> AsyncIterator[Piece]:
        """Give each piece as it comes, without blocking; leaving early cancels the request."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: loop.call_soon_threadsafe(changed.set)
        try:
            while True:
                changed.clear()
                finished = self.finish_reason is not None  # asked before: no piece comes after
                while self._pieces:
                    yield self._pieces.popleft()
                if finished:
                    break
                await changed.wait()
        finally:
            self._wake = None
            self.cancel()
        if self.error is not None:
            raise self.error

    def give(self, piece: Piece) -> None:
        """Hand a piece to whoever listens; the engine's."""
        with self._changed:
            self._pieces.append(piece)
            self._tell()

    def finish(self, reason: FinishReason, error: VarifocalError | None = None) -> bool:
        """Mark it done, once; the engine's. False if it was done before."""
        with self._changed:
            if self.finish_reason is not None:
                return False
            self.error, self.finish_reason = error, reason
            self._tell()
            return True

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            with suppress(RuntimeError):  # the listener's event loop has been closed
                self._wake()
