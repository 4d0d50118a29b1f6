"""Why a recipe cannot be trained, found before a model is loaded or a process is started.

`train`, `launch`, `plan` and `data check` all ask here, so no verb passes what another refuses.
Two things are judged elsewhere: single records, which `data check` reads and `train` encodes, and
what only a model's layers show, which `plan` builds without weights.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedConfig

from varifocal.data.encoding.samples import NO_IMAGE, NO_SOURCE
from varifocal.data.example import Image
from varifocal.data.loading import find_captions, load_source, no_captions
from varifocal.data.metric import Gold, check_scorable, gold_answers
from varifocal.data.readers.images import missing_images_allowed
from varifocal.data.source import StreamedSource, open_source
from varifocal.errors import DataError, ModelError, RecipeError, RunError, VarifocalError
from varifocal.models.families.base import family_of
from varifocal.models.load import find_config
from varifocal.models.words import check_descriptions
from varifocal.recipe import (
    FullSection,
    HubSection,
    NoTunerSection,
    Recipe,
    SourceSection,
    leaves_text,
)
from varifocal.training.alignment import aligns
from varifocal.training.dry_build import check_connector_is_saved, check_fits, check_libraries
from varifocal.training.examples import check_mixture, check_streams
from varifocal.training.full_tuning import refuse_quantised

NOTHING_TRAINED = "tuner: nothing is trained; set tuner.type or tuner.train_connector"


def why_refused(
    recipe: Recipe, *, steps: int | None = None, skip_absent: bool = False
) -> str | None:
    """Return the sentence with which `check_usable` refuses a recipe, or None."""
    try:
        check_usable(recipe, steps=steps, skip_absent=skip_absent)
    except VarifocalError as error:
        return str(error)
    return None


def check_usable(recipe: Recipe, *, steps: int | None = None, skip_absent: bool = False) -> None:
    """Refuse a recipe that would end before its first step, whatever single records hold.

    Args:
        recipe: its paths absolute.
        steps: of the whole run, where they are known; the parts of a schedule must fit into them.
        skip_absent: pass over sources of a hub, paths that do not exist, and packages that are not
            installed: the training may run on another machine.

    Raises:
        RecipeError: a library refuses a setting, the connector would not be saved, quantised
            weights would be trained, `data.max_length` is past what the language model can read,
            or a schedule does not fit into the steps.
        RunError: nothing is trained.
        DataError: there is nothing to train on, or nothing with an image where text teaches nothing
            (`tuner.text_route: base`), a stream has no end, the alignment has no
            descriptions or none that it can learn from, a source cannot be opened, or a source of
            `data.evaluate` has nothing to score.
    """
    check_libraries(recipe.training, skip_absent=skip_absent)
    check_connector_is_saved(recipe)
    _check_tuner(recipe)
    _check_window(recipe)
    _check_training_sources(recipe, skip_absent)
    if leaves_text(recipe.tuner):
        _check_text_is_left(recipe, skip_absent)
    if aligns(recipe):
        _check_alignment(recipe, skip_absent)
    if recipe.training.eval_steps is not None and not recipe.data.evaluate:
        raise RecipeError(
            "training.eval_steps scores data.evaluate, which names no source; name one, set "
            "data.holdout to a share of the images, or leave training.eval_steps out"
        )
    for section in recipe.data.evaluate:
        if _can_be_read(section, skip_absent):
            _check_questions(section)
    if steps is not None:
        check_fits(recipe.training, steps)


def _check_tuner(recipe: Recipe) -> None:
    tuner, model = recipe.tuner, recipe.model
    if isinstance(tuner, FullSection) and model.quantization:
        raise refuse_quantised()
    if not isinstance(tuner, NoTunerSection):
        return
    if not (tuner.train_connector and (model.vision_tower or _brings_connector(recipe))):
        raise RunError(NOTHING_TRAINED)


def _brings_connector(recipe: Recipe) -> bool:
    config = _config_of(recipe)
    family = None if config is None else family_of(config)
    return config is None or (family is not None and family.connector_name is not None)


def _check_window(recipe: Recipe) -> None:
    """Refuse examples longer than any that the trained run could be asked with."""
    config, longest = _config_of(recipe), recipe.data.max_length
    text = None if config is None else config.get_text_config(decoder=True)
    window = getattr(text, "max_position_embeddings", None)
    if window is not None and longest > window:
        raise RecipeError(
            f"data.max_length: {longest:,} tokens, and {recipe.model.language_model} reads at most "
            f"{window:,} (max_position_embeddings in its config.json); set data.max_length to "
            f"{window} or less"
        )


def _config_of(recipe: Recipe) -> PreTrainedConfig | None:
    try:
        return find_config(recipe.model.language_model).config
    except ModelError:  # whoever loads the model says what is wrong with it
        return None


def _check_training_sources(recipe: Recipe, skip_absent: bool) -> None:
    data = recipe.data
    if not data.train:
        raise DataError(NO_SOURCE)
    if any(section.streaming for section in data.train):
        check_streams(data, has_end=recipe.training.max_steps >= 0)
        return
    if all(_can_be_read(section, skip_absent) for section in data.train):
        check_mixture(data, seed=recipe.seed)


def _check_text_is_left(recipe: Recipe, skip_absent: bool) -> None:
    """Refuse to ask for text that would teach nothing, and data without any image."""
    if recipe.data.mixture.language_fraction:
        raise RecipeError(
            "data.mixture.language_fraction trains on text, and tuner.text_route: base leaves text "
            "to the base model, so nothing would be learned from it; leave one of the two out"
        )
    sections = recipe.data.train
    if not all(_can_be_read(section, skip_absent) for section in sections):
        return
    if not any(_any_image(sections)):
        raise DataError(NO_IMAGE)


def _any_image(sections: Sequence[SourceSection]) -> Iterator[bool]:
    """Tell of record after record whether it has an image; unreadable ones are another's to refuse.

    The sources take turns, so that a large one of text alone holds up none with images.
    """
    sources = [open_source(section) for section in sections]
    if any(isinstance(source, StreamedSource) for source in sources):
        yield True
    whole = [source for source in sources if not isinstance(source, StreamedSource)]
    for number in range(max(map(len, whole), default=0)):
        for source in whole:
            if number < len(source):
                with suppress(DataError):
                    yield bool(source.example(number).images)


def _check_alignment(recipe: Recipe, skip_absent: bool) -> None:
    """Look for described images, and for words that tell them apart."""
    data = recipe.data
    if not all(_can_be_read(section, skip_absent) for section in data.captions or data.train):
        return
    text = recipe.alignment.text if recipe.alignment else "auto"
    pairs = find_captions(data, text)
    if not any(_opens(image) for image, _ in pairs):
        raise no_captions(data, text)
    check_descriptions([caption for _, caption in pairs])


def _opens(image: Image) -> bool:
    try:
        image.open()
    except DataError:
        return False
    return True


def _check_questions(section: SourceSection) -> None:
    with missing_images_allowed():  # they may be asked without
        examples = load_source(section, on_bad_record="skip")
    check_scorable(section, Gold.of(example for example in examples if gold_answers(example)))


def _can_be_read(section: SourceSection, skip_absent: bool) -> bool:
    """Tell whether a source can be read from its start to its end, here."""
    if section.streaming:
        return False
    if not skip_absent:
        return True
    if isinstance(section, HubSection):
        return False
    return Path(section.path).exists() or bool(glob.glob(section.path))
