"""Load a model of which every tensor comes from its checkpoint, or say which one does not.

transformers draws a tensor that a checkpoint lacks at random, prints a table and goes on; a run on
such a base would be trained on noise, and opened on other noise.

A quantised model's linear layers are held by bitsandbytes: NF4 with double quantisation is QLoRA's
(arXiv 2305.14314) and LaVIN-lite's; int8 is LLM.int8's (arXiv 2208.07339), which rounds what goes
into a layer too.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, SiglipVisionModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import INDEX, WEIGHTS, few, weight_paths
from varifocal.models.config_checks import check_number
from varifocal.models.names import PACKAGED, locate
from varifocal.models.sources import Checkpoint, clear_loading_errors, refuse_pickles, shapes_of
from varifocal.recipe import ModelSection

_BUFFERS = (
    r"(^|\.)position_ids$",
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    r"\.(attn|attention)\.(bias|masked_bias|causal_mask)$",
    r"\.num_batches_tracked$",
)
"""What older versions of transformers saved, and every version can compute: masks and positions."""
_OTHER_HEADS = (r"(^|\.)pooler\.", r"^cls\.seq_relationship\.", r"(^|\.)mtp\.")
"""Parts for another task than writing the next token: BERT's two, and multi-token prediction."""
_OTHER_HALF = (r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_(scale|bias)$")
"""The half of CLIP and SigLIP that reads text."""
_CLASSIFIER = (r"^classifier\.",)

_SPARE: tuple[tuple[type[PreTrainedModel] | None, str], ...] = (
    (None, r"(^|\.)embeddings\.mask_token$"),
    (None, r"\.num_batches_tracked$"),
    (None, r"(^|\.)vision_(tower|model)\.(vision_model\.)?head\.(probe|attention|layernorm|mlp)"),
    (SiglipVisionModel, r"^(vision_model\.)?head\."),
)
"""Tensors that a checkpoint may lack, of one class or of all: no state of a patch depends on them.

DINOv2's token for hidden patches, and the head by which SigLIP pools an image."""


def load_weights(
    kind: Any, checkpoint: Checkpoint, build: Callable[[], PreTrainedModel], **options: Any
) -> PreTrainedModel:
    """Load a model of which every tensor comes from its checkpoint.

    Args:
        kind: what has `from_pretrained`: an Auto class, or a class of models.
        checkpoint: of all its weights.
        build: builds the model from its config alone; called on the meta device, to count.
        options: of `from_pretrained`.

    Raises:
        ModelError: a file cannot be read, or tensors are missing, left over or of another shape.
    """
    name = checkpoint.name
    check_has_weights(checkpoint)
    shapes = shapes_of(name, checkpoint.directory)
    with clear_loading_errors(name, checkpoint.path):
        with torch.device("meta"):
            shaped = build()
        described = sum(parameter.numel() for parameter in shaped.parameters())
        check_number(name, shaped.config, described, shapes)
        del shaped
        return load_every_tensor(kind, checkpoint.path, name, **options)


def check_has_weights(checkpoint: Checkpoint) -> None:
    """Raise `ModelError` for a local folder without weights, before anything else is read."""
    place = checkpoint.directory
    if place.is_dir() and not weight_paths(place):
        refuse_pickles(checkpoint.name)
        raise ModelError(
            f"{checkpoint.name!r} cannot be loaded: it has no file named {WEIGHTS} or {INDEX}; "
            "copy the weights next to its config.json"
        )


def load_every_tensor(kind: Any, place: str | Path, name: str, **options: Any) -> PreTrainedModel:
    """Call `from_pretrained`, and refuse a model that is not wholly of its checkpoint.

    Args:
        kind: what has `from_pretrained`.
        place: what it is given.
        name: what error texts call the checkpoint.
        options: more of what it is given.

    Raises:
        ModelError: as `load_weights`.
    """
    # ZeRO-3's own loading cannot go on past a mismatch, and names it
    options["ignore_mismatched_sizes"] = not is_deepspeed_zero3_enabled()
    with _load_report() as messages:
        try:
            model, info = kind.from_pretrained(place, output_loading_info=True, **options)
        except RuntimeError as error:
            if not (names := _unconvertible(messages)):
                raise
            raise ModelError(
                f"{name!r}: its weights cannot be read as those of the model that its config.json "
                f"describes: {few(names)}; {_remedy(name)}"
            ) from error
    refuse_other_tensors(name, model, info)
    refuse_not_finite(name, model)
    return model


def refuse_other_tensors(
    name: str, model: PreTrainedModel, info: Mapping[str, Iterable[Any]]
) -> None:
    """Refuse what `output_loading_info` tells of tensors that are missing, left over or misshapen.

    Args:
        name: what error texts call the checkpoint.
        model: as loaded.
        info: `missing_keys`, `unexpected_keys`, and `mismatched_keys` with both shapes.

    Raises:
        ModelError: how many tensors there are of each kind, and the names of the first ones.
    """
    spare = [pattern for kind, pattern in _SPARE if kind is None or isinstance(model, kind)]
    ignored = [*_BUFFERS, *_OTHER_HEADS]
    if not model.can_generate():
        ignored += [*_OTHER_HALF, *_CLASSIFIER]
    missing = _without(info["missing_keys"], spare)
    left = _without(info["unexpected_keys"], ignored)
    shapes = sorted(
        f"{key} is {_by(own)} there and {_by(wanted)} in the model"
        for key, own, wanted in info["mismatched_keys"]
    )
    kinds = ((missing, "missing"), (left, "left over"), (shapes, "of another shape"))
    faults = [f"{len(names)} {what} ({few(names)})" for names, what in kinds if names]
    if faults:
        raise ModelError(
            f"{name!r} does not hold the model that its config.json describes. Tensors: "
            f"{'; '.join(faults)}. Nothing is drawn at random in their place: {_remedy(name)}"
        )


def refuse_not_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse parameters with a NaN or an infinity, in which every answer would be lost.

    Args:
        name: what error texts call the checkpoint.
        model: as loaded; parameters without values here (meta, another process's) are passed over.

    Raises:
        ModelError: how many such tensors there are, and the names of the first ones.
    """
    odd = [key for key, parameter in model.named_parameters() if not _is_finite(parameter)]
    if odd:
        raise ModelError(
            f"{name!r} holds a NaN or an infinity in {len(odd)} of its tensors ({few(odd)}), and "
            f"nothing can be computed with them: {_remedy(name)}"
        )


def _is_finite(parameter: torch.Tensor) -> bool:
    if parameter.is_meta or not parameter.is_floating_point() or not parameter.numel():
        return True
    values = parameter.detach()
    if values.element_size() == 1:  # float8 has no extremes
        values = values.float()
    return all(bool(end.isfinite()) for end in values.aminmax())


def _remedy(name: str) -> str:
    """Say how a checkpoint is brought into order."""
    if name in PACKAGED:
        return f"delete {locate(name)}, which is made anew from the package"
    return "take config.json and all weight files from one checkpoint, or download it again"


def _without(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    known = re.compile("|".join(patterns))
    return sorted(name for name in names if not known.search(name))


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _unconvertible(messages: list[str]) -> list[str]:
    """Read from transformers' table which tensors it could not convert, as quantised ones."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(messages))
    rows = re.findall(r"^\s*(\S+)\s*\|\s*CONVERSION\b", plain, re.MULTILINE)
    return sorted(rows)


@contextmanager
def _load_report() -> Iterator[list[str]]:
    """Keep transformers' table of tensors out of the log: what is in it is said in a sentence."""
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        messages.append(text)
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)


_NO_LANGUAGE = r".*\b(vision_tower|vision_model|visual|multi_modal_projector|connector)"


def quantisation(section: ModelSection, *, is_vision_language: bool) -> BitsAndBytesConfig:
    """Return bitsandbytes' settings for `model.quantization`.

    Args:
        section: with a `quantization`.
        is_vision_language: the model has a tower and a projector, which stay as they are: images
            are few, and a projector is trained. The head always stays.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(
            f"model.quantization: {section.quantization} needs bitsandbytes;"
            " run: pip install bitsandbytes"
        ) from error
    skipped = (
        ["lm_head", _NO_LANGUAGE] if is_vision_language else None
    )  # None: transformers finds the head
    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
        llm_int8_skip_modules=skipped,
    )


def keep_weights(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew when they are first used without gradients.

    On a CPU with AVX512-BF16 it packs them, and rounds their scales, at the first look in
    evaluation mode, and does not undo it for the next training step, whose gradient would end
    there without a word. Kept as they are, the weights that are asked are those that were trained.
    """
    for module in cast(Any, model).modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
