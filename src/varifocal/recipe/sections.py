"""The knobs: one frozen pydantic section for each part of a run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from varifocal.errors import nearest
from varifocal.recipe.page import WrongKeyError

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]


class Section(BaseModel):
    """A part of the page: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class ConnectorSection(Section):
    """The trained bridge from the vision tower's states to the language model's embeddings."""

    type: Literal["patch_mlp", "cls_pyramid"] = "patch_mlp"
    """`cls_pyramid`: LaVIN's, the CLS state after every fourth block; `patch_mlp`: the patches."""
    hidden_dim: Count | None = None
    """Width of the hidden layer; by default the connector's own (128 for `cls_pyramid`)."""
    num_tokens: Count | None = None
    """`patch_mlp`: local tokens an image is pooled to, a square number; by default every patch."""
    num_global_tokens: Annotated[int, Field(ge=0)] = 0
    """`patch_mlp`: further tokens that read all patches at once."""
    weights: str | None = None
    """A run whose trained connector is the start; by default a fresh one, drawn from the seed."""
    alignment: Literal["words"] | None = None
    """`words`: before training, fit the visual tokens to the embeddings of the caption's words."""
    alignment_steps: Count = 2500
    """Steps of the alignment."""
    alignment_batch_size: Count = 64
    """Pictures a step of the alignment."""
    alignment_learning_rate: Rate = 1e-3
    """Learning rate of the alignment (AdamW)."""
    alignment_scale: Rate = 20.0
    """Factor on the cosine of token and word before the softmax (an inverse temperature)."""

    @model_validator(mode="after")
    def _keys_fit_type(self) -> "ConnectorSection":
        if self.type == "cls_pyramid" and (self.num_tokens or self.num_global_tokens):
            key = "num_tokens" if self.num_tokens else "num_global_tokens"
            raise WrongKeyError(key, "belongs to patch_mlp; cls_pyramid gives a token a block")
        return self


class ModelSection(Section):
    """The frozen parts and how they are loaded.

    Each name is a packaged model (`smollm2-135m-instruct`), a local directory, or a hub id.
    """

    language_model: str
    """A causal language model, or a whole vision-language model when `vision_tower` is null."""
    vision_tower: str | None = None
    """The image encoder to graft on; null: use the language model as it is."""
    connector: ConnectorSection | None = None
    """By default a `patch_mlp` when there is a vision tower."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the frozen weights."""
    attn_implementation: str = "sdpa"
    """transformers' name of the attention code: sdpa, eager, flash_attention_2 ..."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the language model's linear layers in 4 or 8 bits (needs the extra `quant`)."""

    @model_validator(mode="before")
    @classmethod
    def _default_connector(cls, page: Any) -> Any:
        if isinstance(page, dict) and page.get("vision_tower") and page.get("connector") is None:
            return {**page, "connector": ConnectorSection()}
        return page

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelSection":
        if self.connector and not self.vision_tower:
            raise WrongKeyError("connector", "there is no vision_tower for it to read")
        return self


class MMASection(Section):
    """LaVIN's mixture-of-modality adapters (arXiv 2305.15023)."""

    type: Literal["mma"] = "mma"
    bottleneck_dim: Count = 8
    """Width an adapter projects down to."""
    router_temperature: Rate = 10.0
    """Divides the router's logits before its softmax; the paper takes 10 (7B) and 5 (13B)."""
    scale: float = 1.0
    """Factor on the adapter's output."""
    dropout: Share = 0.1
    """Share of the bottleneck that is dropped in training, 0 to below 1."""
    adapt_vision_tower: bool = True
    """Also put an adapter into every block of the vision tower, where it is a transformer."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""


class LoraSection(Section):
    """PEFT's LoRA, for comparison."""

    type: Literal["lora"] = "lora"
    rank: Count = 8
    """Rank of the update."""
    lora_alpha: Rate = 16.0
    """The update is scaled by lora_alpha / rank."""
    dropout: Share = 0.05
    """Share of the layer's input that is dropped in training, 0 to below 1."""
    target_modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    )
    """Ends of the names of the linear layers that are adapted."""
    adapt_vision_tower: bool = False
    """Also adapt the layers of these names inside the vision tower."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""


class NoTunerSection(Section):
    """Nothing but the connector is trained."""

    type: Literal["none"] = "none"
    train_connector: bool = True
    """Train and save the connector; false: train nothing, only evaluate."""


TunerSection = Annotated[
    MMASection | LoraSection | NoTunerSection,
    Field(discriminator="type"),
    BeforeValidator(lambda page: {"type": "mma", **page} if isinstance(page, dict) else page),
]


class SourceSection(Section):
    """One file or folder of examples."""

    path: str
    """A ScienceQA folder (`problems.json`, `pid_splits.json`, `images/`) or a JSON(L)/CSV file."""
    format: Literal["auto", "scienceqa", "table"] = "auto"
    """`auto`: `scienceqa` for a folder with `problems.json`, else `table`."""
    split: str | None = None
    """Name of the split in `pid_splits.json`; null takes every row."""
    prompt_format: Literal["QCM-A", "QCM-ALE", "caption"] = "QCM-A"
    """Question, context and choices to answer; to answer, lecture and explanation; or describe."""
    answer_as: Literal["text", "letter"] = "text"
    """Answer with the choice's text or with its letter."""
    skills: Words | None = None
    """Only these skills; null takes all."""
    max_examples: Count | None = None
    """At most so many examples, the first ones."""
    columns: dict[str, str] | None = None
    """`table`: our name of a column -> its name in the file."""
    repeat: Count = 1
    """How often each example is seen in an epoch."""


class DataSection(Section):
    """What is learned from, what is scored on, and how examples become rows of tokens."""

    root: str | None = None
    """Folder at which relative source paths start; by default the recipe's folder."""
    train: Annotated[tuple[SourceSection, ...], Field(strict=False)] = ()
    """Sources of training examples, joined."""
    captions: Annotated[tuple[SourceSection, ...], Field(strict=False)] = ()
    """Described pictures for `connector.alignment`; by default the captions of `train`."""
    evaluate: Annotated[tuple[SourceSection, ...], Field(strict=False)] = ()
    """Sources to score on."""
    max_length: Count = 512
    """Longest example, in tokens, its images' tokens included."""
    row_length: Count | None = None
    """Tokens of a packed row, at least max_length; by default max_length."""
    packing: bool = True
    """Put several examples into a row; false: one example a row."""
    overflow: Literal["error", "drop", "truncate_prompt"] = "error"
    """An example over max_length: stop, drop and count it, or cut its prompt's text."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    """A record that cannot be read: stop, or skip and count it."""
    system_prompt: str | None = None
    """Text of a system message put before every conversation."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare data beside the training process."""

    @model_validator(mode="after")
    def _row_holds_example(self) -> "DataSection":
        if self.row_length is not None and self.row_length < self.max_length:
            text = f"{self.row_length} is below max_length {self.max_length}"
            raise WrongKeyError("row_length", text)
        return self


class TrainingSection(Section):
    """How it is trained: fields of `transformers.TrainingArguments` under their own names.

    The common ones stand here; any other is passed through (`optim: adamw_8bit`). Batch sizes
    count packed rows.
    """

    model_config = ConfigDict(extra="allow")

    num_train_epochs: Rate = 3.0
    """Passes over the data; fractions are allowed."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimiser steps; above 0 it overrides num_train_epochs."""
    per_device_train_batch_size: Count = 8
    """Rows per device and forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimiser step."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the tuner."""
    connector_learning_rate: Rate | None = None
    """Our own: peak learning rate of the connector; by default learning_rate."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the schedule after the warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.0
    """Warm-up in steps, or below 1 as a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    adam_beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Share = 0.999
    """AdamW's decay of the second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient's norm to this; 0 does not clip."""
    bf16: bool = False
    """Compute in bfloat16 where autocast finds it safe."""
    fp16: bool = False
    """Compute in float16 with loss scaling (CUDA)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    logging_steps: Rate = 10.0
    """A line of metrics every so many steps, or below 1 every such share of the run."""
    save_steps: Rate = 500.0
    """A checkpoint every so many steps, or below 1 every such share of the run."""
    save_total_limit: Count | None = 2
    """Checkpoints that are kept, the newest."""
    compile_layers: bool = False
    """Our own: compile each decoder layer, for rows of one length; it pays in long runs."""

    @model_validator(mode="after")
    def _extras_are_trainer_arguments(self) -> "TrainingSection":
        extras = self.model_extra or {}
        if extras:
            _check_trainer_arguments(extras, list(type(self).model_fields))
        return self

    def trainer_arguments(self) -> dict[str, Any]:
        """Return what goes to `transformers.TrainingArguments`: all but our own knobs."""
        arguments = self.model_dump(exclude={"connector_learning_rate", "compile_layers"})
        # transformers 5.21 renamed it and warns about the old name, which 5.20 alone knows.
        if "activation_checkpointing" in _trainer_argument_names():
            arguments["activation_checkpointing"] = arguments.pop("gradient_checkpointing")
        return arguments


class EvaluationSection(Section):
    """How answers are scored."""

    batch_size: Count = 8
    """Rows per forward pass."""
    score: Literal["options", "generate", "both"] = "options"
    """By the likelihood of each option, by greedy generation and parsing, or by both."""
    max_new_tokens: Count = 64
    """Longest generated answer, in tokens."""


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

    name: str | None = None
    """Name of the run; by default the recipe file's."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random in the run."""
    model: ModelSection
    tuner: TunerSection = MMASection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    provenance: Provenance | None = None
    """Written by the run into its own copy of the recipe."""

    def dump_yaml(self) -> str:
        """Write the whole page, defaults included; `load_recipe` reads it back as it is."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# What the run itself decides; a recipe that set these would be overruled without a word.
_OURS = {
    "output_dir": "give --out",
    "resume_from_checkpoint": "give --resume",
    "seed": "set seed at the top of the recipe",
    "data_seed": "set seed at the top of the recipe",
    "per_device_eval_batch_size": "set evaluation.batch_size",
    "dataloader_num_workers": "set data.num_workers",
    "remove_unused_columns": "Varifocal needs it as it is",
    "warmup_ratio": "set warmup_steps to the share, a number below 1",
}


def _trainer_argument_names() -> set[str]:
    import dataclasses

    from transformers import TrainingArguments

    return {field.name for field in dataclasses.fields(TrainingArguments) if field.init}


def _check_trainer_arguments(extras: Mapping[str, Any], declared: list[str]) -> None:
    """Hold the passed-through keys against the installed transformers; imports torch."""
    known = _trainer_argument_names()
    for key in extras:
        if key in _OURS:
            raise WrongKeyError(key, f"not set here; {_OURS[key]}")
        if key not in known:
            hint = nearest(key, [*declared, *sorted(known)])
            raise WrongKeyError(key, f"unknown key, here and in TrainingArguments{hint}")
