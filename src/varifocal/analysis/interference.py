"""How much a training step on one task helps or harms another: task interference.

From Conditional Mixture-of-LoRA (arXiv 2402.15896). A step of length lambda against the direction
of task j's gradient changes task i's loss on an example x_i, to first order, by lambda times

    D_j L_i(x_i) = E_{x_j}[ (g_j(x_j) / ||g_j(x_j)||)^T g_i(x_i) ] = u_j^T g_i(x_i)

with g the gradient on the adapter's parameters, and the paper compares that with what a step on
task i itself does:

    T_ij = E_{x_i}[ D_j L_i(x_i) / D_i L_i(x_i) ]

T_ij < 0: a step on j undoes what a step on i does. T_ii = 1. lambda cancels.

With a finite sample of examples, three things have to be decided.

*Halves.* x_i and x_j are independent draws, also where i = j. If both came from one sample, every
example of the diagonal would meet itself, D_i L_i would be too large by about ||g|| / n, and all
T_ij too small. So each task's examples are dealt into two halves: steps are taken on one, losses
read on the other, then the halves change places, and the two are added:

    D_ij = u_j(1)^T m_i(2) + u_j(2)^T m_i(1)

with m_i(h) the mean gradient of half h. The same examples under two names still give exactly 1.

*The ratio.* `ratio_of_means`, the default, is T_ij = D_ij / D_ii. `mean_of_ratios` is the paper's
mean over x_i of D_j L_i(x_i) / D_i L_i(x_i), u taken from the half that x_i is not in. Single
examples often have D_i L_i near zero or below; their ratios are huge or of the wrong sign, and a
mean of them settles slowly or never. Where D_ii <= 0 itself (a task's two halves contradict each
other) the default gives no number, rather than a row of turned signs. A block in which an example
has no gradient at all (a text in the vision tower) adds nothing to any sum.

*Blocks.* Each layer is measured alone: as if only its parameters took the step, the gradient
divided by its norm in that layer. So the matrix over all parameters is no mean of the layers'.

Sampling noise shows in the halves: a cell is `sure` where both give it the same sign.

Legend: n tasks, P trained numbers; rows i (whose loss), columns j (whose step).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Estimator = Literal["ratio_of_means", "mean_of_ratios"]
ALL = "all"

SampleT = TypeVar("SampleT")


class StepEffects:
    """Running sums over examples, from which the effect of steps follows.

    Holds 6 n P numbers whatever the number of examples: for each half and task the mean gradient,
    and the mean of the unit gradients over all parameters and within each block.

    Args:
        num_tasks: n.
        size: P.
        blocks: places in the gradient, by name.
        dtype: of the sums.
        device: where they are held.
    """

    def __init__(
        self,
        num_tasks: int,
        size: int,
        blocks: Mapping[str, slice],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        def zeros() -> Tensor:
            return torch.zeros(2, num_tasks, size, dtype=dtype, device=device)

        self.blocks = {ALL: slice(0, size), **blocks}
        self._gradients, self._units, self._block_units = zeros(), zeros(), zeros()
        self._counts = torch.zeros(2, num_tasks, dtype=torch.long)

    def add(self, task: int, half: int, gradient: Tensor) -> None:
        """Add an example's gradient [P]."""
        self._counts[half, task] += 1
        self._gradients[half, task] += gradient
        for name, place in self.blocks.items():
            part = gradient[place]
            norm = torch.linalg.vector_norm(part)
            if norm > 0:
                self._of(name)[half, task, place].add_(part / norm)

    def _of(self, block: str) -> Tensor:
        return self._units if block == ALL else self._block_units

    def steps(self, block: str, half: int) -> Tensor:
        """Return u, each task's mean unit gradient within a block, [n, numbers of the block]."""
        sums = self._of(block)[half, :, self.blocks[block]]
        return sums / self._counts[half, :, None].to(sums)

    def of(self, block: str) -> Tensor:
        """Return u_j^T m_i of a block, steps on the first half and then on the second: [2, n, n].

        float64 on the CPU.
        """
        counts = self._counts[:, :, None].to(self._gradients)
        place = self.blocks[block]
        means = self._gradients[:, :, place] / counts
        found = [means[1 - half] @ self.steps(block, half).T for half in (0, 1)]
        return torch.stack(found).double().cpu()


class ExampleRatios:
    """The paper's mean over examples of D_j L_i(x_i) / D_i L_i(x_i), from a second pass.

    Args:
        effects: of the first pass over the same examples.
    """

    def __init__(self, effects: StepEffects) -> None:
        self._blocks = effects.blocks
        self._steps = {
            (name, half): effects.steps(name, half) for name in self._blocks for half in (0, 1)
        }
        n = len(self._steps[ALL, 0])
        self._sums = {name: torch.zeros(n, n, dtype=torch.float64) for name in self._blocks}
        self._counts = {name: torch.zeros(n, dtype=torch.float64) for name in self._blocks}

    def add(self, task: int, half: int, gradient: Tensor) -> None:
        """Add the ratios of an example; one whose own D is exactly 0 has none."""
        for name, place in self._blocks.items():
            effects = (self._steps[name, 1 - half] @ gradient[place]).double().cpu()  # [n]
            if effects[task] != 0:
                self._sums[name][task] += effects / effects[task]
                self._counts[name][task] += 1

    def of(self, block: str) -> Tensor:
        """Return T of a block, [n, n]; NaN in the row of a task without a ratio."""
        return self._sums[block] / self._counts[block][:, None]


@dataclass(frozen=True)
class Matrix:
    """Interference on one block of parameters.

    Attributes:
        interference: T [n, n]: row i, whose loss; column j, whose step; NaN where undefined.
        effect: D [n, n], loss a unit of step length, the mean of the two halves.
        sure: [n, n] whether both halves give the cell the same sign.
    """

    interference: Tensor
    effect: Tensor
    sure: Tensor

    @property
    def num_pairs(self) -> int:
        """Cells off the diagonal that have a number."""
        return int((self._off_diagonal() & ~self.interference.isnan()).sum())

    @property
    def num_negative(self) -> int:
        """Of them, those below zero: tasks in conflict."""
        return int((self._off_diagonal() & (self.interference < 0)).sum())

    @property
    def num_surely_negative(self) -> int:
        """Of the negative ones, those on whose sign both halves agree."""
        return int((self._off_diagonal() & (self.interference < 0) & self.sure).sum())

    @property
    def negative_share(self) -> float | None:
        """Negative pairs among all, 0 to 1; None where there are none."""
        return self.num_negative / self.num_pairs if self.num_pairs else None

    def _off_diagonal(self) -> Tensor:
        return ~torch.eye(len(self.interference), dtype=torch.bool)

    def as_json(self) -> dict[str, Any]:
        """Return plain lists and numbers; None where a number is undefined."""
        return {
            "interference": _plain(self.interference),
            "effect": _plain(self.effect),
            "sure": self.sure.tolist(),
            "pairs": self.num_pairs,
            "negative": self.num_negative,
            "surely_negative": self.num_surely_negative,
            "negative_share": self.negative_share,
        }


def matrix_from(effects: Tensor, ratios: Tensor | None = None) -> Matrix:
    """Turn effects into interference.

    Args:
        effects: [2, n, n], as `StepEffects.of` gives them.
        ratios: [n, n] the paper's means of ratios, to be taken instead of the ratio of means.

    >>> effects = torch.tensor([[[2.0, -1.0], [1.0, 1.0]], [[2.0, -3.0], [-3.0, 1.0]]])
    >>> matrix = matrix_from(effects)
    >>> matrix.interference.tolist(), matrix.sure.tolist()
    ([[1.0, -1.0], [-1.0, 1.0]], [[True, True], [False, True]])
    """
    total = effects.sum(0)
    own = total.diagonal()[:, None]
    undefined = torch.full_like(total, torch.nan)
    interference = torch.where(own > 0, total / own, undefined) if ratios is None else ratios
    sure = (effects[0].sign() == effects[1].sign()) & (effects[0] != 0)
    return Matrix(interference, total / 2, sure)


@dataclass(frozen=True)
class Interference:
    """Interference between tasks, over all of the adapter's parameters and block by block.

    Attributes:
        tasks: n names, of rows and columns.
        counts: examples used of each.
        estimator: see the module.
        matrices: "all", then each block.
        sizes: trained numbers of each block.
        seconds: that the passes over the examples took.
    """

    tasks: Sequence[str]
    counts: Sequence[int]
    estimator: Estimator
    matrices: Mapping[str, Matrix]
    sizes: Mapping[str, int]
    seconds: float

    @property
    def undefined(self) -> list[str]:
        """Tasks whose row over all parameters has no numbers."""
        empty = self.matrices[ALL].interference.isnan().all(1)
        return [task for task, gone in zip(self.tasks, empty.tolist(), strict=True) if gone]

    def pairs(self) -> list[tuple[float, str, str, bool]]:
        """List T over all parameters as (T, whose loss, whose step, sure), most negative first."""
        matrix = self.matrices[ALL]
        n = len(self.tasks)
        found = [
            (
                float(matrix.interference[i, j]),
                self.tasks[i],
                self.tasks[j],
                bool(matrix.sure[i, j]),
            )
            for i in range(n)
            for j in range(n)
            if i != j and not matrix.interference[i, j].isnan()
        ]
        return sorted(found, key=lambda pair: pair[0])

    def as_json(self) -> dict[str, Any]:
        """Return plain lists and numbers: rows say whose loss, columns whose step."""
        blocks = {
            name: {"trained_parameters": self.sizes[name], **matrix.as_json()}
            for name, matrix in self.matrices.items()
        }
        return {
            "tasks": list(self.tasks),
            "examples": dict(zip(self.tasks, self.counts, strict=True)),
            "estimator": self.estimator,
            "undefined": self.undefined,
            "seconds": round(self.seconds, 2),
            ALL: blocks.pop(ALL),
            "layers": blocks,
        }


def measure_interference(
    samples: Mapping[str, Sequence[SampleT]],
    gradient: Callable[[SampleT], Tensor],
    blocks: Mapping[str, slice],
    *,
    estimator: Estimator = "ratio_of_means",
    progress: Callable[[int, int], None] | None = None,
) -> Interference:
    """Measure how a step on each task changes the loss of each.

    Args:
        samples: at least two of each task.
        gradient: of a sample's loss, [P]; computed once a sample, twice for `mean_of_ratios`.
        blocks: places in the gradient that are measured alone as well.
        estimator: see the module.
        progress: called with (gradients done, in all).

    Raises:
        ValueError: a task has fewer than two samples.
    """
    for task, own in samples.items():
        if len(own) < 2:
            raise ValueError(f"task '{task}' has {len(own)} samples; two halves need at least 2")
    started = time.monotonic()
    passes = 2 if estimator == "mean_of_ratios" else 1
    total = passes * sum(map(len, samples.values()))
    tell = _counting(progress, total)
    effects: StepEffects | None = None
    for task, half, found in _gradients(samples, gradient, tell):
        if effects is None:
            effects = StepEffects(len(samples), len(found), blocks, found.dtype, found.device)
        effects.add(task, half, found)
    if effects is None:
        raise ValueError("there is no task to measure")
    ratios = None
    if estimator == "mean_of_ratios":
        ratios = ExampleRatios(effects)
        for task, half, found in _gradients(samples, gradient, tell):
            ratios.add(task, half, found)
    return Interference(
        tasks=list(samples),
        counts=[len(own) for own in samples.values()],
        estimator=estimator,
        matrices={
            name: matrix_from(effects.of(name), ratios.of(name) if ratios else None)
            for name in effects.blocks
        },
        sizes={name: place.stop - place.start for name, place in effects.blocks.items()},
        seconds=time.monotonic() - started,
    )


def _gradients(
    samples: Mapping[str, Sequence[SampleT]],
    gradient: Callable[[SampleT], Tensor],
    tell: Callable[[], None],
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (task, half, gradient); every other sample of a task is in the other half."""
    for task, own in enumerate(samples.values()):
        for number, sample in enumerate(own):
            yield task, number % 2, gradient(sample)
            tell()


def _counting(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tell


def _plain(matrix: Tensor) -> list[list[float | None]]:
    """Nested lists, None for NaN: JSON has no other word for it."""
    return [[None if cell != cell else cell for cell in row] for row in matrix.tolist()]
