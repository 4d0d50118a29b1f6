"""How much a training step on one task helps or harms another: task interference.

from varifocal.progress import StepProgress

From Conditional Mixture-of-LoRA (arXiv 2402.15896). A step of length lambda against the direction
of task j's gradient changes task i's loss on an example x_i, to first order, by lambda times

    D_j L_i(x_i) = E_{x_j}[ (g_j(x_j) / ||g_j(x_j)||)^T g_i(x_i) ] = u_j^T g_i(x_i)

with g the gradient on the adapter's parameters, and the paper compares that with what a step on
task i itself does:

    T_ij = E_{x_i}[ D_j L_i(x_i) / D_i L_i(x_i) ]

T_ij < 0: a step on j undoes what a step on i does. T_ii = 1. lambda cancels.

With a finite sample of n_i examples of each task, three things have to be decided.

*The ratio.* `ratio_of_means`, the default, is T_ij = D_ij / D_ii with

    D_ij = u_j^T m_i,   u_j = mean of g_j / ||g_j||,   m_i = mean of g_i

over the same examples in both roles. `mean_of_ratios` is the paper's mean over x_i of the single
ratios. One example's D_i L_i(x_i) is often near zero or below; its ratio is then huge or of the
wrong sign, and a mean of such ratios settles slowly or never. Both have the diagonal 1. D_ii is
positive as a rule, and T_ij then has the sign of D_ij; but unit gradients count every example
alike, so where a few large gradients stand against many small ones, a step on the task raises its
own mean loss. The row of such a task is left undefined, rather than given with its signs turned.

*The diagonal's own examples.* In D_ii every example meets itself, which adds mean ||g_i|| / n_i
whatever the task; no D_ij has that. So T_ij is too near to 0 where n_i is small. `carried_over`
says how much: the share of D_ii that is left over pairs of different examples,

    carried_i = (n_i D_ii - mean ||g_i||) / ((n_i - 1) D_ii)

T_ij / carried_i is the estimate without that bias. A task whose examples have no common direction
(the answers are balanced and the model has not learned the skill) has carried_i near 0 or below;
it is `vague`, and of its row only the signs mean something.

*Noise.* A cell is `sure` where both halves of the examples, which share none, agree on its sign.

*Blocks.* Each layer is measured alone: as if only its parameters took the step, the gradient
divided by its norm in that layer. So the matrix over all parameters is no mean of the layers'. An
example without any gradient in a block (a text in the vision tower) takes a step of length 0.

Legend: n tasks, P trained numbers; rows i (whose loss), columns j (whose step).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from varifocal.progress import StepProgress

Estimator = Literal["ratio_of_means", "mean_of_ratios"]
ALL = "all"

_VAGUE = 0.1  # of D_ii carried over to other examples; below, sizes are mostly an artefact

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
        self._norms = {name: torch.zeros(num_tasks, dtype=torch.float64) for name in self.blocks}

    def add(self, task: int, half: int, gradient: Tensor) -> None:
        """Add an example's gradient [P]."""
        self._counts[half, task] += 1
        self._gradients[half, task] += gradient
        for name, place in self.blocks.items():
            part = gradient[place]
            norm = torch.linalg.vector_norm(part)
            self._norms[name][task] += norm.item()
            if norm > 0:
                self._of(name)[half, task, place].add_(part / norm)

    def _of(self, block: str) -> Tensor:
        return self._units if block == ALL else self._block_units

    def steps(self, block: str) -> Tensor:
        """Return u, each task's mean unit gradient within a block, [n, numbers of the block]."""
        sums = self._of(block)[:, :, self.blocks[block]].sum(0)
        return sums / self._counts.sum(0)[:, None].to(sums)

    def of(self, block: str) -> Effects:
        """Return the effects of steps within a block."""
        place = self.blocks[block]
        counts = self._counts[:, :, None].to(self._gradients)
        sums = self._gradients[:, :, place]
        units = self._of(block)[:, :, place]
        halves = (sums / counts) @ (units / counts).mT
        total = (sums.sum(0) / counts.sum(0)) @ (units.sum(0) / counts.sum(0)).T
        num = self._counts.sum(0)
        norms = self._norms[block] / num
        return Effects(total.double().cpu(), halves.double().cpu(), norms, num)


@dataclass(frozen=True)
class Effects:
    """What steps within one block do: loss a unit of step length, in float64 on the CPU.

    Attributes:
        total: [n, n] D_ij.
        halves: [2, n, n] the same from each half of the examples alone.
        norms: [n] mean norm of an example's gradient.
        counts: [n] examples.
    """

    total: Tensor
    halves: Tensor
    norms: Tensor
    counts: Tensor

    @property
    def carried_over(self) -> Tensor:
        """The share of D_ii that pairs of different examples have, [n]; NaN where D_ii <= 0."""
        own = self.total.diagonal()
        own = own.where(own > 0, torch.nan)
        return (self.counts * own - self.norms) / ((self.counts - 1) * own)


class ExampleRatios:
    """The paper's mean over examples of D_j L_i(x_i) / D_i L_i(x_i), from a second pass.

    Args:
        effects: of the first pass over the same examples.
    """

    def __init__(self, effects: StepEffects) -> None:
        self._blocks = effects.blocks
        self._steps = {name: effects.steps(name) for name in self._blocks}
        n = len(self._steps[ALL])
        self._sums = {name: torch.zeros(n, n, dtype=torch.float64) for name in self._blocks}
        self._counts = {name: torch.zeros(n, dtype=torch.float64) for name in self._blocks}

    def add(self, task: int, gradient: Tensor) -> None:
        """Add the ratios of an example; one whose own D is exactly 0 has none."""
        for name, place in self._blocks.items():
            effects = (self._steps[name] @ gradient[place]).double().cpu()  # [n]
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
        effects: what it comes from.
        sure: [n, n] whether both halves of the examples give D_ij one sign.
    """

    interference: Tensor
    effects: Effects
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
            "effect": _plain(self.effects.total),
            "carried_over": _plain(self.effects.carried_over[None])[0],
            "sure": self.sure.tolist(),
            "pairs": self.num_pairs,
            "negative": self.num_negative,
            "surely_negative": self.num_surely_negative,
            "negative_share": self.negative_share,
        }


def matrix_from(effects: Effects, ratios: Tensor | None = None) -> Matrix:
    """Turn effects into interference.

    Args:
        effects: as `StepEffects.of` gives them.
        ratios: [n, n] the paper's means of ratios, to be taken instead of the ratio of means.

    >>> halves = torch.tensor([[[2.0, -1.0], [1.0, 1.0]], [[2.0, -3.0], [-3.0, 1.0]]])
    >>> norms, counts = torch.tensor([2.0, 1.5]), torch.tensor([4, 4])
    >>> effects = Effects(halves.mean(0), halves, norms, counts)
    >>> matrix = matrix_from(effects)
    >>> matrix.interference.tolist(), matrix.sure.tolist()
    ([[1.0, -1.0], [-1.0, 1.0]], [[True, True], [False, True]])
    """
    own = effects.total.diagonal()[:, None]
    nothing = torch.full_like(effects.total, torch.nan)
    interference = torch.where(own > 0, effects.total / own, nothing) if ratios is None else ratios
    first, second = effects.halves.sign()
    return Matrix(interference, effects, (first == second) & (first != 0))


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
    def vague(self) -> list[str]:
        """Tasks whose examples share no direction: only the signs of their rows count."""
        return self._where(self.matrices[ALL].effects.carried_over <= _VAGUE)

    @property
    def undefined(self) -> list[str]:
        """Tasks on which a step raises their own mean loss: their rows have no numbers."""
        return self._where(self.matrices[ALL].interference.isnan().all(1))

    def _where(self, marked: Tensor) -> list[str]:
        return [task for task, mark in zip(self.tasks, marked.tolist(), strict=True) if mark]

    def pairs(self) -> list[tuple[float, str, str, bool]]:
        """List T over all parameters as (T, whose loss, whose step, sure), most negative first."""
        matrix = self.matrices[ALL]
        n = len(self.tasks)
        pairs = [
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
        return sorted(pairs, key=lambda pair: pair[0])

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
            "vague": self.vague,
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
    progress: StepProgress | None = None,
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
    count_up = _counting(progress, total)
    effects: StepEffects | None = None
    for task, half, flat in _gradients(samples, gradient, count_up):
        if effects is None:
            effects = StepEffects(len(samples), len(flat), blocks, flat.dtype, flat.device)
        effects.add(task, half, flat)
    if effects is None:
        raise ValueError("there is no task to measure")
    ratios = None
    if estimator == "mean_of_ratios":
        ratios = ExampleRatios(effects)
        for task, _, flat in _gradients(samples, gradient, count_up):
            ratios.add(task, flat)
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
    count_up: Callable[[], None],
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (task, half, gradient); every other sample of a task is in the other half."""
    for task, own in enumerate(samples.values()):
        for number, sample in enumerate(own):
            yield task, number % 2, gradient(sample)
            count_up()


def _counting(progress: StepProgress | None, total: int) -> Callable[[], None]:
    done = 0

    def count_up() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return count_up


def _plain(matrix: Tensor) -> list[list[float | None]]:
    """Nested lists, None for NaN: JSON has no other word for it."""
    return [[None if cell != cell else cell for cell in row] for row in matrix.tolist()]
