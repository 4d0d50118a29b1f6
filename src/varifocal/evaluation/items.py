"""What a benchmark asks and what came back, whatever the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from varifocal.data.example import Example


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: its name, unique in the benchmark.
        example: the question. A closing assistant turn and `answer_index` are the gold answer; a
            model is only ever shown `asked`.
        references: the answers that count as right, as the benchmark's metric compares them.
        group: what is scored together: MME's picture, POPE's split.
        tags: subject, grade, skill and the like, for measures by column.
    """

    id: str
    example: Example
    references: tuple[str, ...]
    group: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> Example:
        """The question without its gold answer; all that the prompt is made of."""
        messages = self.example.messages
        if messages[-1].role == "assistant":
            messages = messages[:-1]
        return replace(self.example, messages=messages, answer_index=None)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        item_id: of the question.
        text: what it wrote; None by likelihood.
        choice: the likeliest of the example's choices; None when it wrote.
        parsed: the answer that its text names, in the words of the item's references; by
            likelihood the choice's text. None: the text names none.
        scores: [choices] log-probabilities in nats, by likelihood.
    """

    item_id: str
    text: str | None = None
    choice: int | None = None
    parsed: str | None = None
    scores: tuple[float, ...] = ()
