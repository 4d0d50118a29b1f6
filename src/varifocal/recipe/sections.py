"""The whole page of a run, from its parts in this folder's other files, and its former keys."""

from typing import Any, Literal

import yaml
from pydantic import Field, ValidationInfo, model_validator

from varifocal.errors import RecipeError
from varifocal.recipe.base_section import Count, Rate, RunName, Section
from varifocal.recipe.data import AlignmentText, DataSection
from varifocal.recipe.model import ModelSection
from varifocal.recipe.prompt_formats import gives_reasons_first
from varifocal.recipe.strict_yaml import FLOAT, WrongKeyError
from varifocal.recipe.trainer_arguments import NEED_WORKERS
from varifocal.recipe.training import TrainingSection
from varifocal.recipe.tuners import MMASection, TunerSection


class EvaluationSection(Section):
    """How answers are scored."""

    batch_size: Count = 8
    """Rows per forward pass."""
    score: Literal["options", "generate", "both"] = "options"
    """By the likelihood of each option, by greedy generation and parsing, or by both."""
    max_new_tokens: Count = 64
    """Longest generated answer, in tokens."""


class AlignmentSection(Section):
    """The connector is fitted before the training, the language model not run."""

    type: Literal["words"] = "words"
    """`words`: fit the visual tokens to the embeddings of words that describe an image."""
    text: AlignmentText = "auto"
    """Where the words stand: in captions, or in the answers and questions of `data.train`; `auto`:
    in captions where there are any (docs/studies/alignment.md compares them)."""
    steps: Count = 2500
    """Steps of the alignment."""
    batch_size: Count = 64
    """Images a step."""
    learning_rate: Rate = 1e-3
    """Peak learning rate (AdamW)."""
    scale: Rate = 20.0
    """Factor on the cosine of token and word before the softmax (an inverse temperature)."""


class Provenance(Section):
    """What a run adds to its recipe: with what, and on what, it was trained. Read, never set."""

    versions: dict[str, str]
    """Python and the libraries, by name."""
    data: dict[str, str]
    """Fingerprint of each source's table of records, by path."""
    base_fingerprint: str | None
    """SHA-256 over the frozen weights' files."""


class Recipe(Section):
    """The whole page."""

    name: RunName | None = None
    """Name of the run; by default the recipe file's."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random in the run."""
    model: ModelSection
    alignment: AlignmentSection | None = None
    """Before the training, on `data.captions` or on answers; null for none."""
    tuner: TunerSection = MMASection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    provenance: Provenance | None = None
    """Written by the run into its own copy of the recipe."""

    @model_validator(mode="after")
    def _alignment_has_a_connector(self) -> "Recipe":
        if self.alignment and not self.model.connector:
            raise WrongKeyError(
                "alignment", "fits a connector, and there is no model.vision_tower; set it to null"
            )
        if self.alignment and getattr(self.tuner, "weights", None):
            raise WrongKeyError(
                "alignment",
                "would be lost: tuner.weights puts another connector in; set it to null",
            )
        return self

    @model_validator(mode="after")
    def _training_fits_the_data(self, info: ValidationInfo) -> "Recipe":
        """Refuse keys of training that do nothing, or another thing, with these data."""
        if (info.context or {}).get("is_trained"):
            return self
        for key in NEED_WORKERS:
            if self.training.get(key) and (self.data.num_workers == 0 or self.data.lazy):
                raise WrongKeyError(
                    f"training.{key}", "needs data.num_workers above 0, and data.lazy: false"
                )
        trains_text = getattr(self.tuner, "text_route", "trained") == "trained"
        if self.training.keep is not None and (self.tuner.type == "none" or not trains_text):
            key = "text_route: base" if not trains_text else "type: none"
            raise WrongKeyError(
                "training.keep",
                f"text goes through nothing that is trained with tuner.{key}, so the base's "
                "language stays by itself; leave it out",
            )
        if self.training.get("neftune_noise_alpha") and self.data.packing:
            raise WrongKeyError(
                "training.neftune_noise_alpha",
                "the noise is scaled by a row's length; set data.packing to false, so that a row "
                "is an example",
            )
        return self

    @model_validator(mode="after")
    def _score_fits_the_prompts(self, info: ValidationInfo) -> "Recipe":
        """Refuse the likelihood of options that are written after their reasons."""
        if (info.context or {}).get("is_trained") or self.evaluation.score == "generate":
            return self
        for source in self.data.evaluate:
            if gives_reasons_first(source.prompt_format):
                raise WrongKeyError(
                    "evaluation.score",
                    f"{source.prompt_format} gives its reasons before the answer, which options "
                    "are scored without; set it to generate",
                )
        return self

    def dump_yaml(self) -> str:
        """Write the whole page, defaults included; `load_recipe` reads it back as it is."""
        page = self.model_dump(mode="json")
        return yaml.dump(page, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that escapes the rare line breaks, which PyYAML would read back as blanks."""


def _quote(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quote)
# A text that our reader would take for a number, `1e3`, is written in quotes.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


_ALIGNMENT = ("steps", "batch_size", "learning_rate", "scale")
_SECTION = "alignment, a section of its own, such as alignment: {type: words, steps: 2500}"
_FORMER = {
    "model.picture_side": "model.image_side",
    "model.connector.plain": "model.connector.type, mlp2x_gelu for LLaVA's projector",
    "model.connector.alignment": _SECTION,
    **{f"model.connector.alignment_{key}": f"alignment.{key}" for key in _ALIGNMENT},
}
_PLACES = ("path", "hub", "subset", "field")
_OF_PATCH_MLP = ("num_tokens", "num_global_tokens")


def refuse_former_keys(page: dict[str, Any]) -> None:
    """Refuse keys that have another name now.

    Raises:
        RecipeError: one sentence a line, each with the new key.
    """
    errors = [f"{old}: the key is now {new}" for old, new in _FORMER.items() if _holds(page, old)]
    if errors:
        raise RecipeError("\n".join(errors))


def _holds(page: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(page, dict) or part not in page:
            return False
        page = page[part]
    return True


def read_former_keys(page: dict[str, Any]) -> None:
    """Bring the recipe that a run of an earlier version wrote into today's keys, in place."""
    for side in ("train", "captions", "evaluate"):
        for source in page.get("data", {}).get(side, ()):
            for key in _PLACES:
                if source.get(key, key) is None:
                    del source[key]
    model = page["model"]
    if "picture_side" in model:
        model["image_side"] = model.pop("picture_side")
    connector = model.get("connector")
    if not connector or "alignment" not in connector:
        return
    kind = connector.pop("alignment")
    options = {key: connector.pop(f"alignment_{key}") for key in _ALIGNMENT}
    page["alignment"] = None if kind is None else {"type": kind, **options}
    if connector.pop("plain", False):
        connector["type"] = "mlp2x_gelu"
        del connector["hidden_dim"]
    if connector["type"] != "patch_mlp":
        for key in _OF_PATCH_MLP:
            del connector[key]
