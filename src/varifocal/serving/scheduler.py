"""Continuous batching: one thread owns the model, and rows join and leave its batches.

A new request's prompt is read alone, then its row joins the batch that its lane may share; rows
leave when they are done. transformers' own continuous batching needs paged attention and knows
neither modalities nor adapters, so this is a small one over the ordinary cache.

Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varifocal.data.example import Image
from varifocal.errors import VarifocalError
from varifocal.models.decoding import reads_marks
from varifocal.models.likelihood import EncodedQuestion, Ids, best_option, score_options
from varifocal.serving import kv_cache
from varifocal.serving.adapter_routes import Lanes
from varifocal.serving.answer_state import Writing
from varifocal.serving.kv_cache import PrefixCache, Seen
from varifocal.serving.request import AnswerScore, FinishReason, Piece, Request
from varifocal.serving.structured_output import forbid_tokens

LoadImages = Callable[[Sequence[Image]], Mapping[str, Tensor]]

_MOST_OPTION_TOKENS = 256
"""Of allowed answers that are scored in one row, after the prompt."""


class EngineFault(VarifocalError):  # noqa: N818 - the name says what is wrong
    """The model or the engine failed, not the request; asking again may go well."""

    exit_code = 1


@dataclass(eq=False)
class RequestRow:
    """A request that is being answered.

    Attributes:
        request: the request.
        writing: its answer so far.
        ids: of its tokens in the cache, [T].
        token: the next one to read.
    """

    request: Request
    writing: Writing
    ids: list[int]
    token: int = 0


@dataclass(eq=False)
class Batch:
    """Rows that go through the model together.

    Attributes:
        shares: the name of the batch; None for a row that stays alone.
        rows: B.
        cache: their keys and values, left-padded.
        mask: [B, T], 1 where a row has a token in the cache.
    """

    shares: str | None
    rows: list[RequestRow]
    cache: Any
    mask: Tensor


class Scheduler:
    """Answers requests a token at a time; one thread calls it.

    Args:
        model: in evaluation mode.
        lanes: of the model.
        load_images: images -> the model's image tensors; None for a model without a vision tower.
        prefixes: what was read before.
        make_writing: a request -> how its answer is written.
        finished: is told of each request that is done, with the reason and the error.
        tokens_per_image: how many tokens an image takes.
        image_token_id: their id.
    """

    def __init__(
        self,
        model: nn.Module,
        lanes: Lanes,
        load_images: LoadImages | None,
        prefixes: PrefixCache,
        make_writing: Callable[[Request], Writing],
        finished: Callable[[Request, FinishReason, VarifocalError | None], None],
        *,
        tokens_per_image: int = 0,
        image_token_id: int | None = None,
    ) -> None:
        self.model: Any = model
        self.lanes = lanes
        self.load_images = load_images
        self.prefixes = prefixes
        self.make_writing = make_writing
        self.finished = finished
        self.tokens_per_image = tokens_per_image
        self.image_token_id = image_token_id
        self.batches: list[Batch] = []
        self.alone_because = kv_cache.rows_can_join(self.model.config.get_text_config(decoder=True))
        self._device = next(model.parameters()).device
        self._reads_marks = reads_marks(model)

    def start(self, request: Request) -> None:
        """Read a request's prompt and write its first token; a failure is the request's own."""
        if request.is_cancelled:
            return self.finished(request, "cancelled", None)
        try:
            if request.options:
                return self._score(request)
            row = RequestRow(
                request, self.make_writing(request), request.encoded.input_ids.tolist()
            )
            cache, logits = self._read(row)
            batch = Batch(self._shares(request), [row], cache, self._ones(len(row.ids)))
            if self._write(batch, logits):
                self._join(batch)
        except VarifocalError as error:
            self.finished(request, "error", error)
        except Exception as error:
            self.finished(request, "error", fault(error))

    def _score(self, request: Request) -> None:
        """Write the likeliest of the allowed answers, and score each."""
        encoded = request.encoded
        images = tuple(encoded.images)
        questions = [
            EncodedQuestion(encoded.input_ids, group, encoded.modality, images)
            for group in _groups(request.options, _MOST_OPTION_TOKENS)
        ]
        with self.lanes.running([request.route]):
            scored = score_options(self.model, questions, self.load_images)
        logprobs = [logprob for scores in scored for logprob in scores]
        best = best_option(logprobs)
        shares = torch.tensor(logprobs, dtype=torch.float64).softmax(dim=0).tolist()
        texts = request.sampling.allowed_answers
        request.answer_scores = tuple(map(AnswerScore, texts, logprobs, shares))
        request.completion_tokens = len(request.options[best])
        request.give(Piece(texts[best]))
        self.finished(request, "stop", None)

    def step(self) -> None:
        """Write one token of every row."""
        for batch in list(self.batches):
            try:
                self._leave(batch, [row for row in batch.rows if row.request.is_cancelled])
                if batch.rows:
                    self._write(batch, self._next(batch))
            except Exception as error:
                self.batches = [other for other in self.batches if other is not batch]
                for row in batch.rows:
                    self.finished(row.request, "error", fault(error))

    def _shares(self, request: Request) -> str | None:
        return None if self.alone_because else self.lanes.shares(request.route)

    def _read(self, row: RequestRow) -> tuple[Any, Tensor]:
        """Read a prompt after what is known of it: its cache, and its last logits [1, V]."""
        request = row.request
        cache, start = None, 0
        if self._shares(request) is not None:
            prefix = self.prefixes.find(self._seen(row))
            start = prefix.length
            cache = kv_cache.filled_cache(prefix.keys) if start else None
            request.continued_tokens = start if prefix.is_vlm else 0
        request.cached_tokens = start
        ids = torch.tensor([row.ids[start:]], device=self._device)
        inputs = {
            "input_ids": ids,
            "position_ids": torch.arange(start, len(row.ids), device=self._device)[None],
            "attention_mask": self._ones(len(row.ids)),
            **self._images(row, start),
        }
        with self.lanes.running([request.route]):
            return self._run(inputs, cache, [request], is_prompt=True)

    def _images(self, row: RequestRow, start: int) -> dict[str, Tensor]:
        """Load the images that stand after a place."""
        encoded = row.request.encoded
        if not encoded.images or self.load_images is None or self.image_token_id is None:
            return {}
        known = row.ids[:start].count(self.image_token_id) // self.tokens_per_image
        if known == len(encoded.images):
            return {}
        with self.lanes.running([row.request.route]):
            loaded = self.load_images(encoded.images[known:])
        return {name: value.to(self._device) for name, value in loaded.items()}

    def _next(self, batch: Batch) -> Tensor:
        """Read every row's token: [B, V] logits."""
        positions = batch.mask.sum(dim=1, keepdim=True)
        batch.mask = F.pad(batch.mask, (0, 1), value=1)
        tokens = [[row.token] for row in batch.rows]
        inputs = {
            "input_ids": torch.tensor(tokens, device=self._device),
            "position_ids": positions,
            "attention_mask": batch.mask,
        }
        requests = [row.request for row in batch.rows]
        with self.lanes.running([request.route for request in requests]):
            batch.cache, logits = self._run(inputs, batch.cache, requests, is_prompt=False)
        for row in batch.rows:
            row.ids.append(row.token)
        return logits

    def _run(
        self, inputs: dict[str, Tensor], cache: Any, requests: list[Request], *, is_prompt: bool
    ) -> tuple[Any, Tensor]:
        marks = {}
        if self._reads_marks:
            like = inputs["input_ids"]
            modality = [[request.encoded.modality] for request in requests]
            marks["modality_ids"] = torch.tensor(modality, device=self._device).expand_as(like)
            marks["prompt_mask"] = torch.full_like(like, is_prompt, dtype=torch.bool)
        output = self.model(
            **inputs, **marks, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.past_key_values, output.logits[:, -1]

    def _write(self, batch: Batch, logits: Tensor) -> bool:
        """Choose every row's next token; the rows that are done leave. False if none is left."""
        allowed = self._allowed(batch, logits)
        likeliest = allowed.argmax(dim=-1).tolist()
        done = []
        for index, row in enumerate(batch.rows):
            here, error = slice(index, index + 1), None
            try:
                row.token, reason = row.writing.choose(
                    logits[here], allowed[here], likeliest[index]
                )
            except Exception as raised:
                reason = "error"
                error = raised if isinstance(raised, VarifocalError) else fault(raised)
            if reason is not None:
                self.finished(row.request, reason, error)
                done.append(row)
        self._leave(batch, done)
        return bool(batch.rows)

    def _allowed(self, batch: Batch, logits: Tensor) -> Tensor:
        """Forbid what may not be written: the image placeholder, and what a row's schema forbids.

        Args:
            batch: B rows.
            logits: [B, V], left as they are.
        """
        token = self.image_token_id
        has_placeholder = token is not None and token < logits.shape[-1]
        parsers = [row.request.parser for row in batch.rows]
        if not has_placeholder and not any(parsers):
            return logits
        logits = logits.clone()
        if has_placeholder:
            logits[:, token] = -torch.inf
        if any(parsers):
            forbid_tokens(logits, parsers)
        return logits

    def _join(self, batch: Batch) -> None:
        """Put a new row into the batch that it shares, the rows of a lane next to one another."""
        into = next(
            (other for other in self.batches if batch.shares and other.shares == batch.shares), None
        )
        if into is None:
            self.batches.append(batch)
            return
        into.cache, into.mask = kv_cache.join(into.cache, into.mask, batch.cache, batch.mask)
        into.rows += batch.rows
        lanes = [self.lanes.lane(row.request.route) for row in into.rows]
        order = sorted(range(len(lanes)), key=lanes.__getitem__)
        if order != list(range(len(order))):
            into.rows = [into.rows[row] for row in order]
            into.cache, into.mask = kv_cache.keep_rows(into.cache, into.mask, order)

    def _leave(self, batch: Batch, leaving: list[RequestRow]) -> None:
        """Take rows out of a batch, and remember what they have read."""
        if not leaving:
            return
        for index, row in enumerate(batch.rows):
            if row in leaving:
                self._remember(batch, index, row)
                if row.request.is_cancelled:
                    self.finished(row.request, "cancelled", None)
        stay = [index for index, row in enumerate(batch.rows) if row not in leaving]
        batch.rows = [batch.rows[index] for index in stay]
        if stay:
            batch.cache, batch.mask = kv_cache.keep_rows(batch.cache, batch.mask, stay)
        else:
            self.batches = [other for other in self.batches if other is not batch]

    def _remember(self, batch: Batch, index: int, row: RequestRow) -> None:
        if batch.shares is None or not self.prefixes.max_bytes:
            return
        tokens = self._seen(row)
        if not self.prefixes.holds(tokens):
            start = batch.mask.shape[1] - len(row.ids)
            self.prefixes.put(tokens, kv_cache.read_columns(batch.cache, index, start))

    def _seen(self, row: RequestRow) -> Seen:
        ids = np.asarray(row.ids, dtype=np.int64)
        starts: list[int] = []
        if row.request.encoded.images:
            starts = np.flatnonzero(ids == self.image_token_id)[:: self.tokens_per_image].tolist()
        names = [image.fingerprint() for image in row.request.encoded.images]
        images = tuple(zip(starts, names, strict=True))
        reader = (self.lanes.lane(row.request.route), row.request.client)
        return Seen(reader, ids, images, self.tokens_per_image)

    def _ones(self, length: int) -> Tensor:
        return torch.ones(1, length, dtype=torch.long, device=self._device)


def _groups(options: Sequence[Ids], most: int) -> list[tuple[Ids, ...]]:
    """Split options, in their order, into groups of at most so many tokens, or a longer one.

    >>> [len(group) for group in _groups([np.zeros(n, np.int32) for n in (3, 2, 9, 1)], 5)]
    [2, 1, 1]
    """
    groups: list[list[Ids]] = [[]]
    for ids in options:
        if groups[-1] and sum(map(len, groups[-1])) + len(ids) > most:
            groups.append([])
        groups[-1].append(ids)
    return [tuple(group) for group in groups]


def fault(error: Exception) -> EngineFault:
    """Say in a sentence that the model failed."""
    what = str(error).strip().splitlines()
    return EngineFault(
        f"the model failed while it answered: {type(error).__name__}: {what[0] if what else ''}"
    )
