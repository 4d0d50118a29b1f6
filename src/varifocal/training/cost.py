"""What a training has spent: tokens by modality, images, operations, seconds.

The sums go into every checkpoint, so that a resumed run ends with those of an unbroken one, and
into `cost.json`. `docs/cost.md` says what each number counts.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from varifocal.models.distributed import in_world
from varifocal.training.clock import Clock
from varifocal.training.flops import FlopFormula

_STATUS = Path("/proc/self/status")


def peak_memory_gib() -> float:
    """The most memory this process has held, in GiB: on the GPU where there is one, else resident.

    On Linux the resident peak is `VmHWM`: `ru_maxrss` begins at what the parent process held when
    it started this one.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    own = _high_water_mark()
    return _of_rusage() if own is None else own


def _high_water_mark() -> float | None:
    """Read `VmHWM` (kB) in GiB; None where the system keeps no such file or line."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) / 2**20


def _of_rusage() -> float:
    """`ru_maxrss` in GiB, which macOS counts in bytes and other systems in KiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


IGNORED = -100


@dataclass
class Spent:
    """What went through a process's model, before a resumption too.

    Attributes:
        tokens: without padding; `tokens_text + tokens_with_picture`.
        tokens_text: of samples without an image.
        tokens_with_picture: of samples with one, the images' own included.
        tokens_image: of them, those that stand for images.
        tokens_trained: those with a loss.
        tokens_distilled: of them, those whose loss is the divergence from the base.
        tokens_padding: what filled up the rows.
        vision_passes: images that went through the tower, those for the table included.
        vision_lookups: images whose features were read from the table instead.
        flops: operations of training, the tower's and the alignment's included.
        flops_vision: of them, those of tower and connector.
        flops_keep: of them, those of the base's answers that `training.keep` asks for.
        flops_masked: further ones, on padding and on attention between samples of a row.
        tokens_evaluated: further tokens, of `training.eval_steps`: held-out rows, and questions
            with their answers.
        flops_evaluation: further operations of them, forward alone; of images, the tower's.
    """

    tokens: int = 0
    tokens_text: int = 0
    tokens_with_picture: int = 0
    tokens_image: int = 0
    tokens_trained: int = 0
    tokens_distilled: int = 0
    tokens_padding: int = 0
    vision_passes: int = 0
    vision_lookups: int = 0
    flops: int = 0
    flops_vision: int = 0
    flops_keep: int = 0
    flops_masked: int = 0
    tokens_evaluated: int = 0
    flops_evaluation: int = 0

    def add(
        self,
        batch: Mapping[str, Any],
        formula: FlopFormula | None = None,
        image_token_id: int | None = None,
        loss_chunk: int | None = None,
    ) -> None:
        """Count one batch of a training step; the tower's forward passes are `add_passes`'s.

        Args:
            batch: as a collator makes it, on any device.
            formula: of the model; None counts no operations.
            image_token_id: the images' placeholder.
            loss_chunk: as `supervised_loss` takes it.
        """
        marks = {name: batch[name].cpu() for name in _MARKS if name in batch}
        trained = marks["labels"] != IGNORED
        real = trained | marks["prompt_mask"]
        has_image = real & (marks.get("modality_ids", torch.zeros_like(trained)) == 1)
        self.tokens += int(real.sum())
        self.tokens_with_picture += int(has_image.sum())
        self.tokens_text += int((real & ~has_image).sum())
        self.tokens_trained += int(trained.sum())
        if "reference_mask" in batch:
            self.tokens_distilled += int(batch["reference_mask"].sum())
        self.tokens_padding += int((~real).sum())
        if image_token_id is not None and "input_ids" in marks:
            self.tokens_image += int((real & (marks["input_ids"] == image_token_id)).sum())
        looked_up = len(batch.get("image_features", ()))
        self.vision_lookups += looked_up
        if formula is not None:
            from_pixels = _num_from_pixels(batch)
            logits = _logits(trained, loss_chunk)
            self._add_operations(
                formula, real, logits, marks.get("segment_ids"), from_pixels, looked_up
            )

    def _add_operations(
        self,
        formula: FlopFormula,
        real: Tensor,
        logits: tuple[int, int],
        segments: Tensor | None,
        from_pixels: int,
        looked_up: int,
    ) -> None:
        rows, length = real.shape
        supervised, again = logits
        needed = {
            "tokens": int(real.sum()),
            "pairs": _pairs(real, segments),
            "positions": supervised,
            "positions_again": again,
        }
        done = {
            "tokens": rows * length,
            "pairs": _pairs(torch.ones_like(real), segments)
            if formula.decoder.fused
            else rows * length**2,
            "positions": supervised,
            "positions_again": again,
        }
        images = from_pixels + looked_up
        language = formula.language(**needed, num_images=images)
        vision = formula.images(from_pixels, looked_up)
        self.flops += language + vision
        self.flops_vision += vision
        self.flops_masked += formula.language(**done, num_images=images) - language

    def add_passes(self, num_images: int, formula: FlopFormula) -> None:
        """Count images that went through the vision tower."""
        self.vision_passes += num_images
        self.flops += num_images * formula.image.tower
        self.flops_vision += num_images * formula.image.tower

    def add_vision(self, flops: int) -> None:
        """Count operations of the connector outside a training step."""
        self.flops += flops
        self.flops_vision += flops

    def add_keep(self, flops: int) -> None:
        """Count operations of the base's answers, before the first step."""
        self.flops += flops
        self.flops_keep += flops

    def add_evaluated(self, tokens: int, pairs: int, positions: int, formula: FlopFormula) -> None:
        """Count a forward pass of an evaluation; see `DecoderShape.forward`."""
        self.tokens_evaluated += tokens
        self.flops_evaluation += formula.decoder.forward(
            tokens=tokens, pairs=pairs, positions=positions
        )

    def __add__(self, other: Spent) -> Spent:
        """Sum two processes'."""
        mine, theirs = asdict(self), asdict(other)
        return Spent(**{name: mine[name] + theirs[name] for name in mine})


def _num_from_pixels(batch: Mapping[str, Any]) -> int:
    """Count a batch's images that come as pixels; a Qwen-VL's are rows of patches, with grids.

    >>> _num_from_pixels({"pixel_values": range(64), "image_grid_thw": [(1, 8, 8)]})
    1
    """
    return len(batch.get("image_grid_thw", batch.get("pixel_values", ())))


_MARKS = ("input_ids", "labels", "prompt_mask", "modality_ids", "segment_ids")


def _logits(trained: Tensor, chunk: int | None) -> tuple[int, int]:
    """Count tokens with a loss, and those whose logits `supervised_loss` computes again.

    >>> trained = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    >>> _logits(trained, None), _logits(trained, 4), _logits(trained, 3)
    ((4, 0), (4, 0), (4, 4))
    """
    supervised = int(trained[:, 1:].sum())
    return supervised, supervised if chunk is not None and supervised > chunk else 0


def _pairs(real: Tensor, segments: Tensor | None) -> int:
    """Count pairs of tokens in one segment: the sum of squared lengths.

    Args:
        real: [B, T], whether a token counts.
        segments: [B, T] numbers of segments from 0 on; None for one a row.

    >>> _pairs(torch.tensor([[1, 1, 1, 0]]).bool(), torch.tensor([[0, 0, 1, 2]]))
    5
    """
    if segments is None:
        return int(real.sum(1).square().sum())
    rows, widest = len(segments), int(segments.max()) + 1
    place = segments + widest * torch.arange(rows)[:, None]
    lengths = torch.bincount(place[real], minlength=1)
    return int(lengths.square().sum())


class Meter:
    """Counts what one process of a training spends.

    Args:
        base: the model inside any PEFT wrapper, before a launcher wraps or shards it.
        clock: that of the stages before the training; a new one by default.
        checkpointing: whether the layers run again in the backward pass.
        loss_chunk: as `supervised_loss` takes it.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        clock: Clock | None = None,
        *,
        checkpointing: bool = False,
        loss_chunk: int | None = None,
    ) -> None:
        self.base = base
        self.loss_chunk = loss_chunk
        self.clock = clock or Clock()
        self.formula = FlopFormula.of(base, checkpointing=checkpointing, in_step=in_world())
        self.resumed = Spent()
        self._spent = Spent()
        self._passes = 0

    @property
    def spent(self) -> Spent:
        """The sums so far."""
        passes = getattr(self.base, "vision_passes", 0)
        self._spent.add_passes(passes - self._passes, self.formula)
        self._passes = passes
        return self._spent

    def step(self, batch: Mapping[str, Any]) -> None:
        """Count one batch, as a collator makes it."""
        config = self.base.config
        token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        self._spent.add(batch, self.formula, token, self.loss_chunk)
        if not hasattr(self.base, "vision_passes"):  # a model of transformers does not count
            self._spent.add_passes(_num_from_pixels(batch), self.formula)

    def add_alignment(self, num_images: int, num_words: int) -> None:
        """Count the connector's steps against words: forward, and backward for its weights.

        Args:
            num_images: that went through it, repeats included.
            num_words: each visual token is compared with, forward and backward.
        """
        base: Any = self.base
        width = base.get_input_embeddings().embedding_dim
        compared = 2 * 2 * base.tokens_per_image * width * num_words
        self._spent.add_vision(num_images * compared + self.formula.images(0, num_images))

    def add_keep(self, flops: int) -> None:
        """Count the base's answers; of several processes on a machine one has written them."""
        self._spent.add_keep(flops)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Count the block's time and images to the evaluation, and not to the training."""
        _ = self.spent
        with self.clock.stage("evaluation", inside="training"):
            yield
        passes = getattr(self.base, "vision_passes", 0)
        self._spent.flops_evaluation += (passes - self._passes) * self.formula.image.tower
        self._passes = passes

    def add_evaluated(self, batch: Mapping[str, Any]) -> None:
        """Count a batch of held-out rows, as a collator makes it."""
        trained = batch["labels"] != IGNORED
        real = trained | batch["prompt_mask"]
        counts = int(real.sum()), _pairs(real, batch["segment_ids"]), int(trained.sum())
        self._spent.add_evaluated(*counts, self.formula)
        if not hasattr(self.base, "vision_passes"):
            images = _num_from_pixels(batch) * self.formula.image.tower
            self._spent.flops_evaluation += images

    def add_asked(self, lengths: Sequence[int], positions: Sequence[int]) -> None:
        """Count questions, or tokens that were written; what these attend to is left out."""
        pairs = sum(length**2 for length in lengths)
        self._spent.add_evaluated(sum(lengths), pairs, sum(positions), self.formula)

    def page(self, **more: Any) -> dict[str, Any]:
        """What `cost.json` holds; all processes must call it.

        Args:
            more: what else stands there: `steps`, `peak_memory_gib`.
        """
        return cost_page(gathered(self.spent), self.clock.seconds(), **more)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: every process's sums, and the seconds. All must call it."""
        return {"spent": gathered(self.spent), "seconds": self.clock.seconds()}

    def take_up(self, state: Mapping[str, Any], rank: int = 0, num_processes: int = 1) -> None:
        """Go on from a checkpoint's sums; what this process has spent since stays in."""
        self.resumed = own_share(state["spent"], rank, num_processes)
        self._spent = self.resumed + self._spent
        self.clock.before = dict(state["seconds"])


def gathered(spent: Spent) -> list[dict[str, int]]:
    """The sums of every process, in the order of their ranks; all must call it."""
    return gather_object([asdict(spent)]) if in_world() else [asdict(spent)]


def own_share(saved: Sequence[Mapping[str, int]], rank: int, num_processes: int) -> Spent:
    """Take up a checkpoint's sums: a process its own; the first one all where their number changed.

    >>> saved = [{"tokens": 3}, {"tokens": 4}]
    >>> [own_share(saved, rank, 2).tokens for rank in (0, 1)], own_share(saved, 0, 1).tokens
    ([3, 4], 7)
    """
    known = {each.name for each in fields(Spent)}
    each = [Spent(**{k: v for k, v in page.items() if k in known}) for page in saved]
    if len(each) == num_processes:
        return each[rank]
    return sum(each, Spent()) if rank == 0 else Spent()


def cost_page(
    all_spent: Sequence[Mapping[str, int]], seconds: Mapping[str, float], **more: Any
) -> dict[str, Any]:
    """Write down what `cost.json` holds.

    Args:
        all_spent: of every process.
        seconds: as `Clock.seconds`.
        more: what else stands there: `steps`, `peak_memory_gib`.
    """
    spent = sum((Spent(**page) for page in all_spent), Spent())
    training = seconds.get("training", 0.0)
    return {
        **asdict(spent),
        **{f"seconds_{name}": round(value, 3) for name, value in seconds.items()},
        "tokens_per_second": round(spent.tokens / training, 3) if training else None,
        "flops_per_second": round(spent.flops / training) if training else None,
        "num_processes": len(all_spent),
        **more,
    }
