"""The one generation engine: conversations of text and images in, pieces of answers out.

`ask`, `chat` and the server use it. Requests may come from any thread; one thread of the engine's
own runs the model while there is work, and ends when there is none.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from varifocal.data.encoding.encoded import Encoded
from varifocal.data.encoding.encoder import Encoder, TooLongError
from varifocal.data.example import Example, Message
from varifocal.errors import DataError, VarifocalError
from varifocal.models.decoding import stop_ids
from varifocal.models.families.base import family_of
from varifocal.models.likelihood import Ids
from varifocal.serving.adapter_routes import Lanes, copy_sharing_weights
from varifocal.serving.answer_state import TextStream, Writing
from varifocal.serving.kv_cache import PrefixCache
from varifocal.serving.request import (
    ContextLengthError,
    EngineClosed,
    FinishReason,
    Piece,
    QueueFull,
    Request,
    Route,
    SampledToken,
    Sampling,
)
from varifocal.serving.scheduler import EngineFault, LoadImages, Scheduler, fault
from varifocal.serving.structured_output import SchemaCompiler
from varifocal.tuners import routing_table

__all__ = [
    "ContextLengthError",
    "Engine",
    "EngineClosed",
    "EngineFault",
    "EngineStats",
    "Piece",
    "QueueFull",
    "Request",
    "SampledToken",
    "Sampling",
    "TextStream",
]

GIB = 2**30
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """What an engine does, and what it has done since it was made.

    Attributes:
        running: requests being answered.
        waiting: requests in the queue.
        prompt_tokens: tokens of the prompts that were read, those from the prefix cache included.
        completion_tokens: tokens written.
        cached_tokens: prompt tokens that were not read again.
        requests: how many ended in each way: "stop", "length", "cancelled", "error".
        prefix_cache_bytes: held now.
        is_folded: whether all requests share one batch at the base model's cost.
        unfolded_reason: why not; empty where they do.
    """

    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    requests: dict[str, int]
    prefix_cache_bytes: int
    is_folded: bool
    unfolded_reason: str


class Engine:
    """Answers conversations with a model.

    The engine runs a copy of the model which shares its weights, in evaluation mode, and folds
    there what can be folded (see `lanes.py`): a second weight of each folded linear is all the
    memory that it takes. The model that was given stays as it is, and may be run meanwhile; do not
    change its weights before the engine is closed.

    Args:
        model: a causal language model of transformers, bare, grafted or wrapped by PEFT.
        encoder: conversations -> token ids.
        load_images: images -> the model's image tensors; None for a model without a vision tower.
        max_batch: most requests that are answered at once.
        max_queue: most requests that wait while others are answered; 0 answers at once or not.
        prefix_cache_gib: memory for keys and values of earlier turns; 0 keeps none. A Qwen-VL
            keeps none whatever it says.
        fold: False runs adapters as they are.

    Attributes:
        model: the engine's copy.
        has_adapter: whether a request may leave an adapter out.
        routes: which weights a request may ask for, whatever images it has: "base" and, of a model
            that takes images, "text".
        window: tokens of a prompt and its answer; None where the model's config has no bound.
        base_takes_no_images: whether the model without its adapter is asked without images.
        routing: MMA's branch weights, text and image, by norm (`routing_table`); None for others.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        load_images: LoadImages | None = None,
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        prefix_cache_gib: float = 0.5,
        fold: bool = True,
    ) -> None:
        if max_batch < 1 or max_queue < 0:
            raise ValueError(
                f"max_batch must be at least 1 and max_queue 0, not {max_batch} and {max_queue}"
            )
        model = copy_sharing_weights(model).eval()
        self.model: Any = model
        self.load_images = load_images
        self.max_batch, self.max_queue = max_batch, max_queue
        self.stop_ids = stop_ids(model, encoder.end_of_turn_id)
        self.routing = _routing(model)
        self._lanes = Lanes(model, fold=fold)
        self.has_adapter = self._lanes.has_adapter
        self.routes: tuple[Route, ...] = ("base", "text") if self.has_adapter else ()
        if load_images is None:
            self.routes = self.routes[:1]
        base: Any = cast(Any, model).get_base_model() if self.has_adapter else model
        family = family_of(base.config)
        # without its adapter a graft's language model takes no images
        self.base_takes_no_images = family is not None and family.connector_is_new
        text: Any = self.model.config.get_text_config(decoder=True)
        self.window: int | None = getattr(text, "max_position_embeddings", None)
        self.encoder = encoder.for_prompts(self.window)
        self._schemas = SchemaCompiler(encoder.tokenizer, self.stop_ids)
        prefixes_fit = family is None or family.prefixes_fit
        self._prefixes = PrefixCache(int(prefix_cache_gib * GIB) if prefixes_fit else 0)
        self._scheduler = Scheduler(
            model,
            self._lanes,
            load_images,
            self._prefixes,
            self._writing,
            self._finished,
            tokens_per_image=encoder.tokens_per_image,
            image_token_id=encoder.image_token_id,
        )
        self._changed = threading.Condition(threading.RLock())
        self._encoding = threading.Lock()
        self._opening = encoder.opening_ids.tolist()
        self._told_system = False
        self._waiting: deque[Request] = deque()
        self._active: dict[int, Request] = {}
        self._worker: threading.Thread | None = None
        self._is_closed = False
        self._tokens: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        _ENGINES.add(self)

    def submit(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        adapter: bool = True,
        images: bool = True,
        client: str = "",
    ) -> Request:
        """Encode a conversation and put it into the queue; any thread may call it.

        Args:
            messages: turns of text and images, the user's last; nothing of them is cut.
            sampling: greedy and 256 tokens by default.
            adapter: False answers with the model as it was before training. A grafted model is
                then a language model without a vision tower: images are left out of the prompt.
            images: False leaves images out of the prompt, so that the text route answers.
            client: whose conversation it is; what others have sent is not gone on from.

        Returns:
            The request, whose pieces come as they are written.

        Raises:
            ContextLengthError: the conversation is longer than the model's window.
            DataError: it cannot be encoded, or there is no adapter to leave out.
            SchemaError: no answer can follow `sampling.json_schema`.
            QueueFull: too many wait.
            EngineClosed: the engine is closed.
        """
        if not images:
            messages = _without_images(messages)
        request = self._request(messages, sampling or Sampling(), adapter, client)
        self._enqueue(request)
        return request

    def answer(
        self, messages: Sequence[Message], sampling: Sampling | None = None, *, adapter: bool = True
    ) -> str:
        """Return the whole answer; arguments and errors as in `stream`."""
        return "".join(self.stream(messages, sampling, adapter=adapter))

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None, *, adapter: bool = True
    ) -> Generator[str, None, None]:
        """Encode a conversation at once, then yield the answer as it is written.

        Arguments are those of `submit`.

        Returns:
            Pieces of text, none empty. Closing the generator stops the answer.

        Raises:
            VarifocalError: at once as `submit` where the conversation is at fault; with the first
                piece where an image cannot be read, the queue is full or the model fails.
        """
        return self._pieces(self._request(messages, sampling or Sampling(), adapter))

    def stats(self) -> EngineStats:
        """Return what the engine does and has done; any thread may call it."""
        with self._changed:
            return EngineStats(
                running=len(self._active),
                waiting=len(self._waiting),
                prompt_tokens=self._tokens["prompt"],
                completion_tokens=self._tokens["completion"],
                cached_tokens=self._tokens["cached"],
                requests=dict(self._outcomes),
                prefix_cache_bytes=self._prefixes.num_bytes,
                is_folded=self._lanes.is_folded,
                unfolded_reason=self._lanes.reason,
            )

    def close(self, drain: bool = False) -> None:
        """Take no more requests, and wait until none is left; folded weights are freed.

        Args:
            drain: answer what was asked; False cancels it.
        """
        with self._changed:
            self._is_closed = True
            if not drain:
                for request in [*self._waiting, *self._active.values()]:
                    request.cancel()
            worker = self._worker
        if worker is not None:
            worker.join()
        self._lanes.close()

    def _request(
        self, messages: Sequence[Message], sampling: Sampling, adapter: bool, client: str = ""
    ) -> Request:
        if not messages or messages[-1].role != "user":
            raise DataError("a conversation to be answered ends with the user's turn")
        if not adapter and not self.has_adapter:
            raise DataError("this model has no adapter that could be left out")
        if not adapter and self.base_takes_no_images:
            messages = _without_images(messages)
        answers = sampling.allowed_answers
        example = Example(messages=tuple(messages), choices=answers, is_prompt=True)
        encoded, options = self._encode(example)
        route: Route = "base" if not adapter else "image" if encoded.modality else "text"
        schema = sampling.json_schema
        parser = None if schema is None else self._schemas.compile(schema)
        return Request(encoded, sampling, route, client, parser, options)

    def _encode(self, example: Example) -> tuple[Encoded, list[Ids]]:
        """Encode a prompt, and the answers that it allows."""
        try:
            with self._encoding:
                if example.choices:
                    encoded, options = self.encoder.encode_options(example)
                else:
                    encoded, options = self.encoder.encode(example, with_answer=False), []
                if encoded.lost_system and not self._told_system:
                    self._told_system = True
                    _LOG.warning("the chat template leaves a system message out; told once")
                return encoded, options
        except TooLongError as error:
            window = self.window or error.tokens
            raise ContextLengthError(error.tokens, window, at_least=error.at_least) from error

    def _enqueue(self, request: Request) -> None:
        with self._changed:
            if self._is_closed:
                raise EngineClosed("the engine is closed and takes no more requests")
            free = self.max_batch - len(self._active)
            if len(self._waiting) >= max(self.max_queue, free):
                raise QueueFull(
                    f"{len(self._waiting)} requests wait already, at most {self.max_queue} may; "
                    "ask again later"
                )
            request.on_cancel = self._cancelled
            self._waiting.append(request)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
                self._worker.start()

    def _pieces(self, request: Request) -> Generator[str, None, None]:
        self._enqueue(request)
        try:
            for piece in request:
                if piece.text:
                    yield piece.text
        finally:
            request.cancel()

    def _cancelled(self, request: Request) -> None:
        """Take a request that waits out of the queue; one that runs leaves at its next token."""
        with self._changed:
            if request in self._waiting:
                self._waiting.remove(request)
                self._finished(request, "cancelled", None)

    def _finished(
        self, request: Request, reason: FinishReason, error: VarifocalError | None
    ) -> None:
        with self._changed:
            self._active.pop(request.id, None)
            if request.finish_reason is None:
                self._outcomes[reason] += 1
                self._tokens["completion"] += request.completion_tokens
                if request.completion_tokens:
                    self._tokens["prompt"] += request.prompt_tokens
                    self._tokens["cached"] += request.cached_tokens
        request.finish(reason, error)

    def _writing(self, request: Request) -> Writing:
        most = request.sampling.max_new_tokens
        if self.window is not None:  # the last token is written, but not read
            most = min(most, self.window - request.prompt_tokens + 1)
        return Writing(request, self.encoder.tokenizer, self.stop_ids, most, self._opening)

    @torch.inference_mode()
    def _work(self) -> None:
        """Answer until there is nothing left to do; whatever goes wrong, nobody waits forever."""
        while True:
            new = None
            with self._changed:
                if len(self._active) < self.max_batch and self._waiting:
                    new = self._waiting.popleft()
                    self._active[new.id] = new
                if not self._active:
                    self._worker = None
                    return
            try:
                if new is not None:
                    self._scheduler.start(new)
                self._scheduler.step()
            except Exception as error:
                self._scheduler.batches.clear()
                for request in list(self._active.values()):
                    self._finished(request, "error", fault(error))


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Stop the threads before the interpreter takes the model from under them."""
    for engine in list(_ENGINES):
        engine.close()


def _routing(model: nn.Module) -> dict[str, Tensor] | None:
    try:
        return routing_table(model)
    except ValueError:
        return None


def _without_images(messages: Sequence[Message]) -> list[Message]:
    """Leave the images out of a conversation."""
    contents = [
        tuple(part for part in message.content if isinstance(part, str)) for message in messages
    ]
    return [
        replace(message, content=parts) for message, parts in zip(messages, contents, strict=True)
    ]
