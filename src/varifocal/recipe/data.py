"""What is learned from and scored on, and how examples become rows of tokens."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from varifocal.recipe.page import WrongKeyError
from varifocal.recipe.section import Count, Rate, Section, Words

FormatName = Literal[
    "auto",
    "llava",
    "sharegpt",
    "openai",
    "alpaca",
    "scienceqa",
    "vision_flan",
    "mlan",
    "prompt_completion",
    "query_response",
    "cauldron",
    "table",
    "captions",
]
MetricName = Literal["exact", "vqa", "anls", "contains", "likelihood"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class SourceSection(Section):
    """One file, folder or hub data set of examples, and how much of it a mixture takes."""

    path: str | None = None
    """A file, a folder, a `save_to_disk` folder, or a pattern of tar shards (`shards/*.tar`)."""
    hub: str | None = None
    """Instead of `path`: the id of a Hugging Face data set; asked for only when named here."""
    subset: str | None = None
    """`hub`: the data set's configuration."""
    field: str | None = None
    """Of a .json file that holds an object: the key of its list of rows, as in `datasets`."""
    format: FormatName = "auto"
    """How records are read; `auto` finds out from the file's name and first records."""
    name: str | None = None
    """What reports call the source; by default the path's or the data set's own name."""
    split: str | None = None
    """Only this split: of `pid_splits.json`, of a data set, or of a table's column `split`."""
    image_folder: str | None = None
    """The only place images are read from; by default the file's own folder."""
    prompt_format: Literal["QCM-A", "QCM-ALE", "caption"] = "QCM-A"
    """`scienceqa`: answer alone; answer, lecture and explanation; or describe the image."""
    answer_as: Literal["text", "letter"] = "text"
    """Answer with the choice's text or with its letter."""
    answer_is: Literal["auto", "index", "index_from_1", "value", "letter"] = "auto"
    """What a gold answer with choices is; `auto`: a choice's text or letter, and an integer is an
    index from 0, or among numbers the equal one."""
    metric: MetricName | None = None
    """`data.evaluate`: how answers are scored. By default `likelihood` where all questions have
    choices, `vqa` where each has the answers of three annotators or more, else `exact`."""
    instructions: Literal["plain", "varied"] = "plain"
    """`varied`: word each question by a template drawn by seed, as MLAN does."""
    skills: Words | None = None
    """Only these skills; null takes all."""
    columns: dict[str, str] | None = None
    """`table`: our name of a column -> its name in the file."""
    streaming: bool = False
    """Read records in their order as they come, never the whole; needs training.max_steps."""
    max_examples: Count | None = None
    """At most so many examples, the first ones."""
    max_per_task: Count | None = None
    """At most so many examples of each task, drawn by seed (Vision-Flan: 1,000)."""
    epochs: Rate | None = None
    """How often each example is seen in an epoch of the mixture; fractions draw a part."""
    weight: Rate | None = None
    """Share of the mixture relative to the other weights, instead of the source's size."""

    @model_validator(mode="after")
    def _has_one_place(self) -> "SourceSection":
        if (self.path is None) == (self.hub is None):
            raise WrongKeyError("path", "give either path or hub")
        if self.subset is not None and self.hub is None:
            raise WrongKeyError("subset", "belongs to hub")
        if self.field is not None and not (self.path or "").lower().endswith(".json"):
            raise WrongKeyError("field", "belongs to a path that ends with .json")
        if self.epochs is not None and self.weight is not None:
            raise WrongKeyError("weight", "epochs decides the source's count already; give one")
        return self

    @property
    def place(self) -> str:
        """The path or the hub id."""
        return self.path or self.hub or ""


class MixtureSection(Section):
    """How much of each source an epoch holds; without it, every source once (or its `epochs`)."""

    total: Count | None = None
    """Examples of an epoch; by default as many as the sources hold."""
    language_fraction: Fraction | None = None
    """Share of examples without an image; within each side the sources keep their proportions."""
    temperature: Rate = 1.0
    """Sources count by size ** (1 / temperature): 1 by size, larger ones nearer to equal shares."""
    max_per_task: Count | None = None
    """At most so many examples of each task of every source (Vision-Flan: 1,000)."""


class DataSection(Section):
    """What is learned from, what is scored on, and how examples become rows of tokens."""

    root: str | None = None
    """Folder at which relative source paths start; by default the recipe's folder, or the current
    one for a recipe that ships."""
    train: Annotated[tuple[SourceSection, ...], Field(strict=False)] = ()
    """Sources of training examples, joined, or mixed by `mixture`."""
    mixture: MixtureSection = MixtureSection()
    """Shares of the sources in an epoch."""
    captions: Annotated[tuple[SourceSection, ...], Field(strict=False)] = ()
    """Described images for `connector.alignment`; by default the captions of `train`."""
    evaluate: Annotated[tuple[SourceSection, ...], Field(strict=False)] = ()
    """Sources to score on."""
    max_length: Count = 512
    """Longest example, in tokens, its images' tokens included."""
    row_length: Count | None = None
    """Tokens of a packed row, at least max_length; by default max_length."""
    packing: bool = True
    """Put several examples into a row; false: one example a row."""
    overflow: Literal["error", "drop", "truncate_prompt", "drop_oldest_turns"] = "error"
    """Over max_length: stop, drop and count it, cut its prompt's text, or leave out old turns."""
    train_on: Literal["answers", "last_answer", "all"] = "answers"
    """Train every answer, the last one of a conversation, or every token but the images'."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    """A record that cannot be read: stop, or skip and count it."""
    system_prompt: str | None = None
    """Text of a system message put before every conversation."""
    lazy: bool | None = None
    """Encode while training instead of before it; by default from 20,000 examples on."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare data next to the training process."""

    @model_validator(mode="after")
    def _metric_is_of_a_score(self) -> "DataSection":
        for key in ("train", "captions"):
            for number, source in enumerate(getattr(self, key)):
                if source.metric is not None:
                    text = "says how data.evaluate is scored; leave it out here"
                    raise WrongKeyError(f"{key}[{number}].metric", text)
        return self

    @model_validator(mode="after")
    def _row_holds_example(self) -> "DataSection":
        if self.row_length is not None and self.row_length < self.max_length:
            text = f"{self.row_length} is below max_length {self.max_length}"
            raise WrongKeyError("row_length", text)
        return self
