"""An example as token ids.

Letters: T tokens of one example, V tokens an image takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from varifocal.data.example import Image

Ids = npt.NDArray[np.int32]

IGNORED = -100
"""Label of a token that is not trained, as transformers has it."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        input_ids: [T], each image's placeholder expanded to V copies.
        prompt_mask: [T], False where a token is trained, True elsewhere; the first is never
            trained, since nothing predicts it.
        modality: 0 text alone, 1 with an image.
        images: in the order of their placeholders.
        example_id: the example's id.
        was_cut: whether prompt text was taken out to meet the limit.
        dropped_turns: how many of the oldest turns were left out to meet the limit, two a pair.
        rewritten_answers: answers that are prompt alone, because the chat template writes them in
            another way once the conversation goes on than when they are to be written.
        lost_system: whether the system message is not in what the model reads.
        unread_keys: whether its turns have keys that nothing is made of.
    """

    input_ids: Ids
    prompt_mask: npt.NDArray[np.bool_]
    modality: int = 0
    images: tuple[Image, ...] = ()
    example_id: str = ""
    was_cut: bool = False
    dropped_turns: int = 0
    rewritten_answers: int = 0
    lost_system: bool = False
    unread_keys: bool = False

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.input_ids)

    @property
    def is_counted(self) -> bool:
        """Whether it is not all that its record seems to say, so that it has to be counted."""
        counts = (self.dropped_turns, self.rewritten_answers)
        return any((self.was_cut, self.lost_system, self.unread_keys, *counts))

    @property
    def labels(self) -> Ids:
        """[T], the ids where they are trained and -100 elsewhere."""
        return np.where(self.prompt_mask, np.int32(IGNORED), self.input_ids)

    @property
    def trained_ids(self) -> Ids:
        """The trained ids alone."""
        return self.input_ids[~self.prompt_mask]


@dataclass
class EncodedExamples:
    """What `Encoder.encode_all` made of a list of examples.

    Attributes:
        samples: the encoded examples, in order.
        skipped: one sentence for each broken example (`on_bad_record="skip"`).
        dropped: one sentence for each example over the limit (`overflow="drop"`).
    """

    samples: list[Encoded] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def num_cut(self) -> int:
        """Count the examples whose prompt was cut (`overflow="truncate_prompt"`)."""
        return sum(sample.was_cut for sample in self.samples)

    @property
    def num_shortened(self) -> int:
        """Count the examples that lost their oldest turns (`overflow="drop_oldest_turns"`)."""
        return sum(sample.dropped_turns > 0 for sample in self.samples)
