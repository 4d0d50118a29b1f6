"""What is learned from and scored on, and how examples become rows of tokens."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from varifocal.errors import nearest
from varifocal.recipe.base_section import Count, Rate, Section, Words
from varifocal.recipe.chat_templates import CHAT_TEMPLATES, is_jinja, is_template_file
from varifocal.recipe.prompt_formats import ALLOWED, PROMPT_FORMATS
from varifocal.recipe.strict_yaml import WrongKeyError

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
AlignmentText = Literal["auto", "captions", "answers"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class JoinSection(Section):
    """Another file whose columns are added to a source's rows, found by a key."""

    path: str
    """The file; a relative path starts where the source's own does."""
    key: str
    """The column that both files have, such as `question_id`; its values stand once in this one."""
    key_there: str | None = None
    """The column's name in this file, where it is another one."""
    field: str | None = None
    """Of a .json file that holds an object: the key of its list of rows."""


class HoldoutSection(Section):
    """A share of the images that is scored on and never trained on."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images, and of the rows without one. All rows of an image are on one side."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Other images for another seed; rows that are added later move none of them."""
    metric: MetricName | None = None
    """How the answers to the held-out questions are scored; see a source's `metric`."""


class HoldoutSideSection(Section):
    """One side of a source's rows, as `data.holdout` writes it into both."""

    side: Literal["train", "evaluate"]
    """`evaluate`: the rows of the held-out images; `train`: all others."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """As in `data.holdout`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """As in `data.holdout`."""


class _ReadingSection(Section):
    """How a source is read, and how much of it a mixture takes."""

    format: FormatName = "auto"
    """How records are read; `auto` finds out from the file's name and first records."""
    name: str | None = None
    """What reports call the source; by default the path's or the data set's own name."""
    split: str | None = None
    """Only this split: of `pid_splits.json`, of a data set, or of a table's column `split`."""
    image_folder: str | None = None
    """The only place images are read from; by default the file's own folder."""
    prompt_format: str = "QCM-A"
    """`scienceqa`: what is asked and answered, such as QCM-A, QCM-ALE or QCML-A (Q question, C
    context, M options, L lecture, E explanation, A answer); or `caption`: describe the image."""
    prompt_text: Literal["plain", "published"] = "plain"
    """`scienceqa`: `published` writes prompts and answers to the letter as the code of ScienceQA
    and LaVIN does: `Context: N/A`, line breaks of lectures as two characters, AL and AE swapped."""
    use_captions: bool = False
    """`scienceqa`: put the image's caption into the context, as LaVIN's --use_caption."""
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
    """`table`: our name of a column -> its name in the file, a path into a cell (`answers.text.0`),
    or for `question`, `image` and `choices` a template (`val2014_{image_id:012d}.jpg`); `question`
    may be that of all rows (`What is shown?`)."""
    record_path: str | None = None
    """Where rows lie in lists inside of rows: the dotted path to them (`paragraphs.qas`), as
    pandas names it; each row has its parents' other values, too."""
    join: JoinSection | None = None
    """Another file, whose row with the same key adds its columns to each row."""
    holdout: HoldoutSideSection | None = None
    """Only the rows on this side; `data.holdout` sets it."""
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
    def _prompt_is_known(self) -> "_ReadingSection":
        if self.prompt_format not in PROMPT_FORMATS:
            hint = nearest(self.prompt_format, PROMPT_FORMATS)
            raise WrongKeyError("prompt_format", f"'{self.prompt_format}' is not {ALLOWED}{hint}")
        if self.prompt_text == "published" and self.answer_as != "letter":
            raise WrongKeyError("answer_as", "prompt_text: published names choices by letter")
        if self.prompt_text == "published" and self.instructions == "varied":
            raise WrongKeyError("instructions", "would replace prompt_text: published; give one")
        plain = not self.use_captions and self.prompt_format.startswith("QCM-")
        if self.instructions == "varied" and not plain:
            raise WrongKeyError(
                "instructions", "would replace use_captions and other prompts than QCM; give one"
            )
        return self

    @model_validator(mode="after")
    def _holdout_is_counted(self) -> "_ReadingSection":
        if self.holdout is not None and self.streaming:
            raise WrongKeyError(
                "streaming", "reads no row ahead, which a holdout needs; set it to false"
            )
        return self

    @model_validator(mode="after")
    def _has_one_count(self) -> "_ReadingSection":
        if self.epochs is not None and self.weight is not None:
            raise WrongKeyError("weight", "epochs decides the source's count already; give one")
        return self


class FileSection(_ReadingSection):
    """A file or folder of examples, how it is read, and how much of it a mixture takes."""

    type: Literal["file"] = "file"
    path: str
    """A file, a folder, a `save_to_disk` folder, or a pattern of tar shards (`shards/*.tar`)."""
    field: str | None = None
    """Of a .json file that holds an object: the key of its list of rows, as in `datasets`."""
    column_names: Words | None = None
    """Names of a row's values where the file has none: JSON lists, CSV without a header."""

    @model_validator(mode="after")
    def _field_is_of_json(self) -> "FileSection":
        if self.field is not None and not self.path.lower().endswith(".json"):
            raise WrongKeyError("field", "belongs to a path that ends with .json")
        for name in self.column_names or ():
            if (self.column_names or ()).count(name) > 1:
                raise WrongKeyError("column_names", f"names '{name}' twice")
        return self

    @property
    def place(self) -> str:
        """The path."""
        return self.path

    def at(self, path: str) -> "FileSection":
        """Return another file that is read in the same way."""
        return self.model_copy(update={"path": path, "holdout": None})


class HubSection(_ReadingSection):
    """A data set of the Hugging Face hub, which is asked only where a recipe names it."""

    type: Literal["hub"] = "hub"
    hub: str
    """The id of the data set, `OWNER/NAME`."""
    subset: str | None = None
    """The data set's configuration."""

    @property
    def place(self) -> str:
        """The data set's id."""
        return self.hub

    def at(self, path: str) -> FileSection:
        """Return a file that is read in the same way."""
        return FileSection(
            path=path, **self.model_dump(exclude={"type", "hub", "subset", "holdout"})
        )


def _with_type(page: Any) -> Any:
    """Say what kind of source a page without a `type` is, by the place that it names."""
    if not isinstance(page, dict) or "type" in page:
        return page
    if ("path" in page) == ("hub" in page):
        raise WrongKeyError("path", "give either path or hub")
    return {"type": "hub" if "hub" in page else "file", **page}


SourceSection = Annotated[
    FileSection | HubSection, Field(discriminator="type"), BeforeValidator(_with_type)
]
SourceSections = Annotated[tuple[SourceSection, ...], Field(strict=False)]


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


def _with_share(given: Any) -> Any:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    return {"share": float(given)} if is_number else given


class DataSection(Section):
    """What is learned from, what is scored on, and how examples become rows of tokens."""

    root: str | None = None
    """Folder at which relative source paths start; by default the recipe's folder, or the current
    one for a recipe that ships."""
    train: SourceSections = ()
    """Sources of training examples, joined, or mixed by `mixture`."""
    mixture: MixtureSection = MixtureSection()
    """Shares of the sources in an epoch."""
    captions: SourceSections = ()
    """Described images for `alignment`; by default the captions, or answers, of `train`."""
    holdout: Annotated[HoldoutSection | None, BeforeValidator(_with_share)] = None
    """Score on a share of `train`'s images instead of on `evaluate`: a number, such as 0.1, or a
    section with its seed. Written into the sources, where a run's recipe shows it."""
    evaluate: SourceSections = ()
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
    chat_template: str | None = None
    """How conversations are written: vicuna_v1 (LLaVA's v1), llava_plain, llama2, chatml, lavin or
    lavin_chat; a .jinja file, whose text the run's recipe holds; by default the model's own."""
    lazy: bool | None = None
    """Encode while training instead of before it; by default from 20,000 examples on."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare data next to the training process."""

    @model_validator(mode="after")
    def _chat_template_is_known(self) -> "DataSection":
        choice = self.chat_template
        if choice in (None, *CHAT_TEMPLATES) or is_jinja(choice) or is_template_file(choice):
            return self
        hint = nearest(choice, CHAT_TEMPLATES)
        text = f"no template '{choice}'{hint}; known: {', '.join(CHAT_TEMPLATES)}, or a .jinja file"
        raise WrongKeyError("chat_template", text)

    @model_validator(mode="after")
    def _metric_is_of_a_score(self) -> "DataSection":
        for key in ("train", "captions"):
            for number, source in enumerate(getattr(self, key)):
                if source.metric is not None:
                    text = "says how data.evaluate is scored; leave it out here"
                    raise WrongKeyError(f"{key}[{number}].metric", text)
        return self

    @model_validator(mode="after")
    def _holdout_is_written_out(self) -> "DataSection":
        """Write `holdout` into the sources, so that all who read these have its two sides."""
        if self.holdout is None:
            return self
        if self.evaluate:
            raise WrongKeyError("holdout", "data.evaluate has what is scored on; give one of them")
        if not self.train:
            raise WrongKeyError("holdout", "data.train names no source to hold rows out of")
        for key in ("train", "captions"):
            for number, source in enumerate(getattr(self, key)):
                if source.holdout is not None or source.streaming:
                    what = "holdout" if source.holdout is not None else "streaming"
                    text = "data.holdout divides this source, too; leave it out here"
                    raise WrongKeyError(f"{key}[{number}].{what}", text)
        sides = {
            "train": tuple(_train_side(source, self.holdout) for source in self.train),
            "captions": tuple(_train_side(source, self.holdout) for source in self.captions),
            "evaluate": tuple(_held_out_side(source, self.holdout) for source in self.train),
        }
        for key, value in {**sides, "holdout": None}.items():
            object.__setattr__(self, key, value)  # the section is frozen from here on
        return self

    @model_validator(mode="after")
    def _row_holds_example(self) -> "DataSection":
        if self.row_length is not None and self.row_length < self.max_length:
            text = f"{self.row_length} is below max_length {self.max_length}"
            raise WrongKeyError("row_length", text)
        return self


def _train_side(source: SourceSection, holdout: HoldoutSection) -> SourceSection:
    side = HoldoutSideSection(side="train", share=holdout.share, seed=holdout.seed)
    return source.model_copy(update={"holdout": side})


def _held_out_side(source: SourceSection, holdout: HoldoutSection) -> SourceSection:
    """Return what is scored of a source: each row once, as many as the share is of its limit."""
    side = HoldoutSideSection(side="evaluate", share=holdout.share, seed=holdout.seed)
    most = source.max_examples
    return source.model_copy(
        update={
            "holdout": side,
            "metric": holdout.metric,
            "max_examples": None if most is None else max(1, round(most * holdout.share)),
            **dict.fromkeys(("epochs", "weight", "max_per_task")),
        }
    )
