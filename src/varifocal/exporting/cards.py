"""What the card of an artifact says: how it is loaded, and what its user has to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from varifocal.exporting.artifacts import Job
from varifocal.exporting.gguf import Q8_0
from varifocal.exporting.mmproj import BUILD
from varifocal.exporting.plain_tensors import language_model
from varifocal.exporting.vllm import RANKS
from varifocal.models.saved import shared_name
from varifocal.recipe import leaves_text
from varifocal.trained_weights import find_trained

_PLAIN = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    "model = AutoModelForCausalLM.from_pretrained(HERE)\n"
    "tokenizer = AutoTokenizer.from_pretrained(HERE)"
)
_LORA = (
    "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
    "model = PeftModel.from_pretrained(base, HERE)\n"
    "model.generation_config.eos_token_id = {ends}"
)
_LLAVA = (
    "from transformers import AutoProcessor, LlavaForConditionalGeneration\n\n"
    "model = LlavaForConditionalGeneration.from_pretrained(HERE)\n"
    "processor = AutoProcessor.from_pretrained(HERE)"
)
_GGUF = (
    "from llama_cpp import Llama\n\n"
    'model = Llama(HERE + "/model.gguf")\n'
    'model.create_chat_completion([{{"role": "user", "content": "..."}}], temperature=0)'
)
_LLAMACPP = (
    "import subprocess\n\nfiles = [HERE + '/model.gguf', '--mmproj', HERE + '/mmproj.gguf']\n"
    "subprocess.run(['llama-server', '--jinja', '-m', *files])"
)
_MODEL = (
    "import varifocal\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
    "model = AutoModelForImageTextToText.from_pretrained(HERE)\n"
    "processor = AutoProcessor.from_pretrained(HERE)"
)
_LOADING = {
    "merged": _PLAIN,
    "lora": _LORA,
    "route": _LORA,
    "llava": _LLAVA,
    "gguf": _GGUF,
    "llamacpp": _LLAMACPP,
    "model": _MODEL,
}
LIBRARIES = {"lora": "peft", "route": "peft", "gguf": "gguf", "llamacpp": "gguf"}


def loading(job: Job) -> str:
    """Write the Python that loads an artifact."""
    base = shared_name(job.recipe.model.language_model)
    return _LOADING[job.form].format(base=base, ends=job.ends)


_TEXT_IS_BASE = (
    "Rows without an image belong to the base model; put to this route, they would get what was "
    "learnt from images. vLLM's default_mm_loras gives a LoRA to requests with an image alone."
)
NARROW = (
    "Twice this model in float32 did not fit into memory, so the gate compared logits in the run's "
    "own number format; the layers that the adapter changes were compared one by one in float64."
)


def export_notes(job: Job) -> Iterator[str]:
    """Say what a user of an artifact has to know, a sentence each."""
    grafted = language_model(job.parts.base)[1] != ""
    if (trained := find_trained(job.order.run)).step is not None:
        yield f"The run had not reached its end: this is the run as of step {trained.step}."
    if job.order.strength != 1 and not job.is_base:
        yield f"What the adapter changes is scaled by {job.order.strength:g} (--strength)."
    if job.is_base:
        yield "The text route: the base model itself, to which the run leaves rows of text."
    elif job.route == "text":
        yield "The text route: what the model does with rows that show no image."
    if job.route == "image":
        yield "The image route: what the model does with rows that show an image."
        if leaves_text(job.recipe.tuner):
            yield _TEXT_IS_BASE
    if job.order.serves == "vllm":
        yield from _vllm_notes(job)
    if job.form == "llava":
        yield from _llava_notes(job)
    elif job.form == "model":
        yield from _model_notes(job)
    elif job.form == "llamacpp":
        yield from _llamacpp_notes(job)
    elif grafted:
        yield (
            "The language model alone: vision tower and connector stay in the run. Fed with their "
            "visual tokens as `inputs_embeds`, the image route gives the run's logits."
            if job.route == "image"
            else "The language model alone, without vision tower and connector."
        )
        if job.route and getattr(job.recipe.tuner, "adapt_vision_tower", False):
            yield (
                "The vision tower's adapters, where it has any, are routed by each image's own "
                "state and have no folded form; they stay in the run."
            )
    if job.form == "lora" and job.recipe.tuner.type == "mma" and job.recipe.tuner.projection_bias:
        yield "PEFT runs it and does not merge it, since it has a bias; --to merged writes that."
    if job.form in ("gguf", "llamacpp"):
        yield "The gate read the file back with transformers, not with llama.cpp."
    if job.number_format == Q8_0:
        yield (
            "model.gguf holds matrices as Q8_0, embedding and head included, and norms and biases "
            "as float32; matrices of a tower and its projector (mmproj.gguf) are float16."
        )


def _model_notes(job: Job) -> Iterator[str]:
    yield (
        "Language model, vision tower, connector and processor in one folder, for transformers' "
        "Auto classes after `import varifocal`. The gate put the processor's own ids and pixels "
        "to it."
    )
    if job.keeps_adapter:
        yield (
            "The adapter answers by modality or by prompt and equals no single set of weights, so "
            "adapter_model.safetensors holds it; from_pretrained puts it on. From a hub, download "
            "the folder first, and name the folder."
        )


def _vllm_notes(job: Job) -> Iterator[str]:
    yield (
        "Held against vLLM's rules as its source says them (releases 0.22 to 0.33); vLLM itself "
        "was not run."
    )
    if job.is_pair:
        rank = next(rank for rank in RANKS if rank >= _rank(job.recipe.tuner))
        yield (
            "One vLLM serves both routes, text the base and images this run's LoRA: `vllm serve "
            f"text --enable-lora --max-lora-rank {rank} --default-mm-loras "
            '\'{"image": "image"}\'`, run in the folder that holds text and image.'
        )


def _rank(tuner: Any) -> int:
    return tuner.rank if tuner.type == "lora" else tuner.bottleneck_dim


def _llamacpp_notes(job: Job) -> Iterator[str]:
    side = cast(Any, job.parts.base).vision_tower.image_size
    yield (
        "Two files for llama.cpp and what embeds it: model.gguf is the language model, mmproj.gguf "
        "tower and projector. The gate made tokens of images with the second one as llama.cpp's "
        f"graph does (build {BUILD}), and held them against the run's."
    )
    yield (
        f"llama.cpp fits an image whole into {side} x {side} pixels, pads it and scales it by a "
        f"filter of its own, whatever a file says; the run {_preparation(job)}. Send images that "
        f"are {side} x {side} already, made in this way with Pillow's {_filter(job)}."
    )
    if cast(Any, job.parts.base).select != "patches":
        yield (
            f"The run was trained in the order in which build {BUILD} passes a CLIP tower's tokens "
            "on; a llama.cpp in which upstream's #25814 is fixed reads it otherwise."
        )
    if job.route == "image":
        yield "Questions without an image belong to the text route's model.gguf next to it."


def _preparation(job: Job) -> str:
    """Say how the run makes squares of images."""
    images = cast(Any, job.parts.processor).image_processor
    if getattr(images, "do_pad", None):
        colour = ", ".join(str(int(255 * mean)) for mean in images.image_mean)
        return f"puts it into the middle of a square of the colour ({colour}) and scales that"
    if getattr(images, "do_center_crop", False):
        return "scales its shorter side to the square's and cuts the middle out"
    return "presses both sides to the square's"


def _filter(job: Job) -> str:
    """Name Pillow's filter by which the run scales images."""
    from PIL.Image import Resampling

    return f"Image.{Resampling(cast(Any, job.parts.processor).image_processor.resample).name}"


def _llava_notes(job: Job) -> Iterator[str]:
    yield (
        "transformers' LLaVA: language model, vision tower, projector and processor. The gate put "
        "the processor's own ids and pixels to it."
    )
    if job.route == "image":
        yield (
            "Questions without an image belong to the text route next to it; put to this one, "
            "they get the image route."
        )
    yield (
        "The run prepares images with Pillow: load the processor with backend='pil' where "
        "torchvision is installed, whose resizing differs slightly."
    )
