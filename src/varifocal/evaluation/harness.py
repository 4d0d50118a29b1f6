r"""The field's harnesses ask our models: lm-eval (EleutherAI) and lmms-eval (LMMs-Lab).

Both ask for the same three things, and both get them from this project's own scoring and decoding,
so that a score of theirs is one of ours on the same prompts. Neither harness is imported before a
model for it is asked for. lm-eval comes with the extra `eval`; lmms-eval asks for fifty packages
(OpenCV, PyAV, wandb, ...) and is installed next to it:

    pip install 'lm-eval>=0.4.13'
    pip install 'lmms-eval>=0.7'

    python -m varifocal.evaluation.harness run --model varifocal \
        --model_args model=runs/demo,close_answers=True --apply_chat_template \
        --include_path TASKS --tasks NAME --output_path OUT --log_samples
    lmms-eval --model varifocal --model_args model=runs/demo \
        --include_path TASKS --tasks NAME --output_path OUT --log_samples

lm-eval's line is its own command line after a registration; lmms-eval finds `manifest` by the
entry point group `lmms_eval.models`. With HF_HUB_OFFLINE=1 neither asks the network for tasks whose
data are local files.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from varifocal.assemble import Assembly
from varifocal.data.example import Image
from varifocal.errors import ModelError, VarifocalError
from varifocal.evaluation.harness_model import IMAGE, HarnessModel, images_of
from varifocal.models.likelihood import EncodedQuestion

_INSTALL = {"lm-eval": "'lm-eval>=0.4.13'", "lmms-eval": "'lmms-eval>=0.7'"}

NAME = "varifocal"
"""What both harnesses call our model."""


class LmEvalRequests(HarnessModel):
    """What lm-eval asks of a model; `lm_eval_model` makes it one of lm-eval's.

    With `--apply_chat_template` prompts are the turns our encoder renders, and an option is what
    stands after them; set `target_delimiter: ""`, for an answer begins without a blank. Plain
    prompts are split as lm-eval splits them: blanks at their end belong to what follows.

    Args:
        model, adapter, batch_size, device, dtype: as `HarnessModel`.
        close_answers: an option has to end its turn too, as in this project's own scores.
        max_length: tokens a row may have in rolling likelihoods; the model's own by default.
        max_batch_size: lm-eval passes it; not used.
    """

    MULTIMODAL = True

    def __init__(
        self,
        model: str | Path | Assembly,
        adapter: str | Path | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        close_answers: bool = False,
        max_length: int | None = None,
        max_batch_size: int | None = None,
        dtype: str = "float32",
    ) -> None:
        HarnessModel.__init__(self, model, adapter, batch_size, device, dtype)
        import_module("lm_eval.api.model").LM.__init__(self)
        del max_batch_size
        self.close_answers = close_answers
        self.max_length = int(max_length or _positions(self.parts))
        self._turns = False

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keeps its cached requests by."""
        return str(self.encoder.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template in use, which lm-eval writes into its results."""
        return self.encoder.template.jinja if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render turns as our encoder does, its system prompt included."""
        self._turns = True
        turns = [{**turn, "content": self._own_marks(turn["content"])} for turn in chat_history]
        if turns[0]["role"] != "system" and self.encoder.system is not None:
            turns.insert(0, {"role": "system", "content": self.encoder.system})
        text = self.encoder.template.render(turns, add_generation_prompt)
        if add_generation_prompt:
            return text
        return text[: text.rindex(turns[-1]["content"]) + len(turns[-1]["content"])]

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return (log-probability in nats, whether greedy decoding writes it) of continuations."""
        questions = [self._pair(*request.args) for request in requests]
        return [(reading.score, reading.greedy) for reading in self.rate_each(questions)]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Return the log-probability of whole texts, in windows as long as the model reads."""
        windows = import_module("lm_eval.utils")
        questions: list[EncodedQuestion] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            ids = self.encoder.pieces.split(request.args[0], [])[0]
            for pair in windows.get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._prefix(),
                max_seq_len=self.max_length,
                context_len=1,
            ):
                prompt, option = map(np.array, windows.make_disjoint_window(pair))
                questions.append(
                    EncodedQuestion(prompt.astype(np.int32), (option.astype(np.int32),))
                )
                owners.append(place)
        sums = [0.0] * len(requests)
        for place, (reading,) in zip(owners, self.rate(questions), strict=True):
            sums[place] += reading.score
        return sums

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Write an answer to every prompt, cut at the first of the task's `until`."""
        asked = []
        for request in requests:
            context, wishes, *media = request.args
            text = self._own_marks(context)
            asked.append((self.of_text(text, len(text), _images(media)), wishes))
        return self.answer(asked)

    def _pair(self, context: str, continuation: str, *media: dict[str, Any]) -> EncodedQuestion:
        """Join a prompt and its continuation where lm-eval's own models do."""
        prompt, option = self._own_marks(context), continuation
        if not self._turns:
            bare = prompt.rstrip()
            prompt, option = bare, prompt[len(bare) :] + option
        question = self.of_text(prompt + option, len(prompt), _images(media)) if prompt else None
        if question is None:
            ids = np.array(self.encoder.pieces.split(option, [])[0], np.int32)
            question = EncodedQuestion(np.array([self._prefix()], np.int32), (ids,))
        if self.close_answers:
            closed = np.append(question.option_ids[0], np.int32(self.encoder.end_of_turn_id))
            question = EncodedQuestion(
                question.prompt_ids, (closed.astype(np.int32),), question.modality, question.images
            )
        return question

    def _own_marks(self, text: str) -> str:
        """Write the model's placeholder where a task marks an image."""
        return text.replace(IMAGE, self.encoder.image_token) if self.encoder.image_token else text

    def _prefix(self) -> int:
        tokenizer = self.encoder.tokenizer
        first = tokenizer.bos_token_id
        return int(self.encoder.end_of_turn_id if first is None else first)  # type: ignore[arg-type]


class LmmsEvalRequests(HarnessModel):
    """What lmms-eval asks of a model; `lmms_eval_model` makes it one of lmms-eval's.

    Every prompt is a user's turn, images first, in the model's chat template, and every option
    ends with its end of turn: the protocol of `varifocal eval`. lmms-eval takes the option with
    the smallest loss, so `loglikelihood` gives the negative log-probability, in nats.

    Args:
        model, adapter, batch_size, device, dtype: as `HarnessModel`.
        max_batch_size: lmms-eval passes it; not used.
    """

    is_simple = True

    def __init__(
        self,
        model: str | Path | Assembly,
        adapter: str | Path | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
        dtype: str = "float32",
    ) -> None:
        import_module("lmms_eval.api.model").lmms.__init__(self)
        del max_batch_size
        HarnessModel.__init__(self, model, adapter, batch_size, device, dtype)
        self.task_dict: dict[str, Any]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Return (negative log-probability in nats, whether greedy decoding writes it).

        lmms-eval 0.7 turns a pair of numbers into text, and then cannot read it; what it calls a
        generation passes whole.
        """
        questions = []
        for request in requests:
            text, target, to_visual, *place = request.args
            document = self._document(*place)
            option = target if isinstance(target, str) else str(target(document))
            questions.append(self.of_turn(text, images_of(to_visual(document)), [option.strip()]))
        pairs = [(-reading.score, reading.greedy) for reading in self.rate_each(questions)]
        wrap = getattr(import_module("lmms_eval.api.instance"), "GenerationResult", None)
        return [wrap(pair) for pair in pairs] if wrap else pairs

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Write an answer to every question, cut at the first of the task's `until`."""
        asked = []
        for request in requests:
            text, wishes, to_visual, *place = request.args
            images = images_of(to_visual(self._document(*place)))
            asked.append((self.of_turn(text, images, ()), wishes))
        return self.answer(asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds.

        Raises:
            ModelError: always.
        """
        raise ModelError("varifocal's model for lmms-eval answers tasks of one round only")

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]


@cache
def lm_eval_model() -> type:
    """Return our model as a class of lm-eval's, registered there as `varifocal`.

    Raises:
        ModelError: lm-eval is not installed.
    """
    base = _harness("lm_eval.api.model", "lm-eval").LM
    register = import_module("lm_eval.api.registry").register_model
    return register(NAME)(types.new_class("LmEvalModel", (LmEvalRequests, base)))


@cache
def lmms_eval_model() -> type:
    """Return our model as a class of lmms-eval's.

    Raises:
        ModelError: lmms-eval is not installed.
    """
    base = _harness("lmms_eval.api.model", "lmms-eval").lmms
    return types.new_class("LmmsEvalModel", (LmmsEvalRequests, base))


def manifest() -> Any:
    """Tell lmms-eval where our model is (entry point of its group `lmms_eval.models`)."""
    registry = _harness("lmms_eval.models.registry_v2", "lmms-eval")
    return registry.ModelManifest(NAME, simple_class_path=f"{__name__}.LmmsEvalModel")


def __getattr__(name: str) -> Any:
    """Make the classes that need a harness when they are named."""
    makers: dict[str, Callable[[], type]] = {
        "LmEvalModel": lm_eval_model,
        "LmmsEvalModel": lmms_eval_model,
    }
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return makers[name]()


def _harness(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ModelError(
            f"{package} cannot be imported ({error}); "
            f"it comes with: pip install {_INSTALL[package]}"
        ) from error


def _images(media: Iterable[dict[str, Any]]) -> list[Image]:
    return [image for part in media for image in images_of(part.get("visual"))]


def _positions(parts: Assembly) -> int:
    config = parts.base.config.get_text_config(decoder=True)
    return int(getattr(config, "max_position_embeddings", None) or 2048)


def main() -> None:
    """Run lm-eval's command line with our model known to it."""
    lm_eval_model()
    import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    try:
        main()
    except VarifocalError as error:
        raise SystemExit(f"error: {error}") from error
