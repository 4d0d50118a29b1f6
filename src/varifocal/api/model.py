"""A run, or any model, ready to be asked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from varifocal.assemble import Assembly, open_model, open_run
from varifocal.data.example import ImageLike
from varifocal.errors import DataError, RunError
from varifocal.recipe import Recipe
from varifocal.run import RunDirectory
from varifocal.serving.conversation import Chat, Turn, as_messages
from varifocal.serving.engine import Engine, Request, Sampling


class Model:
    """A model that answers questions about images and text; `load` makes one.

    Every method takes the options of `Sampling`: `max_new_tokens` (256), `temperature` (0 takes the
    likeliest token), `top_p`, `seed` and `stop`; and `adapter=False`, which answers with the model
    as it was before training.

    Args:
        recipe: the run's; of a model, one with its name and defaults.
        parts: the loaded model, its encoder and its image loader.

    Attributes:
        recipe: see above.
        model: the PEFT or transformers model, for `generate` of transformers and for training.
        processor: images and text -> the model's tensors.
        engine: what answers; it batches the questions that wait.
    """

    def __init__(self, recipe: Recipe, parts: Assembly) -> None:
        self.recipe = recipe
        self.model: nn.Module = parts.model
        self.processor: Any = parts.processor
        self.engine = Engine(parts.model, parts.encoder, parts.load_images)

    def ask(
        self,
        text: str,
        images: Sequence[ImageLike] = (),
        *,
        system: str | None = None,
        adapter: bool = True,
        **sampling: Any,
    ) -> str:
        """Answer one question.

        Args:
            text: the question.
            images: shown before it: paths, Pillow images, or the bytes of a file.
            system: a system message in front; by default the run's.
            adapter: see the class.
            sampling: see the class.

        Raises:
            DataError: an image cannot be read, the model has no vision tower, or the prompt is
                longer than the model's window.
        """
        chat = self.chat(system=system, adapter=adapter, **sampling)
        return chat.ask(text, images)

    def stream(self, text: str, images: Sequence[ImageLike] = (), **options: Any) -> Iterator[str]:
        """Answer one question, and yield the answer as it is written; see `ask`."""
        return self.chat(**options).stream(text, images)

    def generate(
        self,
        conversations: Iterable[str | Sequence[Turn]],
        *,
        adapter: bool = True,
        **sampling: Any,
    ) -> list[str]:
        """Answer many questions or conversations, several in a batch.

        Args:
            conversations: each a question, or messages as transformers has them, the user's last.
            adapter: see the class.
            sampling: see the class.

        Returns:
            The answers, in the same order.

        Raises:
            DataError: a conversation is broken, or does not fit the model.
        """
        asked = _sampling(sampling)
        waiting: deque[Request] = deque()
        answers: list[str] = []
        try:
            for conversation in conversations:
                if len(waiting) == self.engine.max_batch:
                    answers.append(_answer(waiting.popleft()))
                messages = as_messages(conversation)
                waiting.append(self.engine.submit(messages, asked, adapter=adapter))
            while waiting:
                answers.append(_answer(waiting.popleft()))
        finally:
            for request in waiting:
                request.cancel()
        return answers

    def chat(self, *, system: str | None = None, adapter: bool = True, **sampling: Any) -> Chat:
        """Begin a conversation that goes on turn by turn.

        Args:
            system: a system message in front; by default the run's.
            adapter: see the class.
            sampling: see the class.
        """
        return Chat(self.engine, system=system, sampling=_sampling(sampling), adapter=adapter)

    def close(self) -> None:
        """Free what the engine holds; the model itself stays."""
        self.engine.close()

    def __repr__(self) -> str:
        return f"Model({self.recipe.name or self.recipe.model.language_model})"


def load(
    name: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    checkpoint: int | None = None,
    strength: float = 1.0,
) -> Model:
    """Load a run, or any language model, for use.

    Args:
        name: a run directory, a packaged model, a local directory, or a hub id.
        adapter: PEFT's files to put around a model; a run has its own.
        dtype: number format of the frozen weights; by default the run's, and float32 for a model.
        checkpoint: the run as of this step's checkpoint; by default as of its end.
        strength: factor on what the adapter changes: 0 is the base, 1 the model as trained.

    Raises:
        RunError: there is nothing of that name, or the run has no weights yet.
        ModelError: the model or its adapter cannot be had, or they do not fit each other.
    """
    path = Path(name).expanduser()
    if not RunDirectory(path).recipe.is_file():
        if checkpoint is not None:
            raise RunError(f"{name} is no run, and has no checkpoints; leave checkpoint out")
        around = None if adapter is None else Path(adapter)
        return Model(*open_model(os.fspath(name), around, dtype=dtype, strength=strength))
    if adapter is not None:
        raise RunError(f"{path} is a run and has its own adapter; leave adapter out")
    return Model(*open_run(path, dtype=dtype, checkpoint=checkpoint, strength=strength))


def _sampling(options: dict[str, Any]) -> Sampling:
    """Make `Sampling` of options.

    Raises:
        DataError: one is not known, or has a value that cannot be.
    """
    if isinstance(stop := options.get("stop", ()), list):
        options = {**options, "stop": tuple(stop)}
    try:
        return Sampling(**options)
    except (TypeError, ValueError) as error:
        raise DataError(f"sampling: {error}") from error


def _answer(request: Request) -> str:
    return "".join(piece.text for piece in request)
