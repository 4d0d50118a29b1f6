"""Connectors: from a vision tower's states to tokens a language model can read.

Letters: N images, K states per image, C tower width, D language width, H hidden width,
V visual tokens per image, L local tokens (one a pooled cell), G global tokens.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varifocal.errors import ModelError, nearest
from varifocal.models.vision import Selection, VisionTower

GLOBAL_GRID = 8
"""Global tokens read at most 8 x 8 cells: flattened, a ViT's 576 would make them huge."""
GLOBAL_CELL_DIM = 64
"""Width each cell is narrowed to before the global tokens' MLP reads all cells at once."""


class Connector(nn.Module):
    """What every connector has.

    Args:
        in_dim: C, width of the tower's states.
        out_dim: D, width of the language model's input embeddings.
        output_scale: when given, every visual token is set to this root mean square, so that it
            enters the language model as large as a word. `embedding_scale` measures it.

    Attributes:
        select: which states of the tower it reads.
        tokens_per_image: V.
    """

    select: Selection
    tokens_per_image: int

    def __init__(self, in_dim: int, out_dim: int, output_scale: float | None) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.output_scale = output_scale

    def scaled(self, tokens: Tensor) -> Tensor:
        """Bring tokens [..., D] to `output_scale`, or leave them."""
        if self.output_scale is None:
            return tokens
        return F.rms_norm(tokens, (self.out_dim,)) * self.output_scale

    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's generator."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def config(self) -> dict[str, Any]:
        """Return the options from which `build_connector` builds this connector again."""
        raise NotImplementedError

    def forward(self, states: Tensor) -> Tensor:
        """Map states [N, K, C] to visual tokens [N, V, D], in the connector's own dtype."""
        raise NotImplementedError


class ClsPyramid(Connector):
    """LaVIN's visual neck: the CLS state after every fourth block, each through one small MLP.

    `X' = silu(X W_d + b_d) W_u + b_u` (arXiv 2305.15023, section 3.2; the paper says SwiGLU, its
    code applies plain SiLU, and so do the published parameter counts). It has
    `in_dim * hidden_dim + hidden_dim + hidden_dim * out_dim + out_dim` parameters: 659,584 from
    CLIP ViT-L/14 (1024) to LLaMA-7B (4096).

    Args:
        in_dim: C, width of the tower's states.
        out_dim: D, width of the language model's input embeddings.
        hidden_dim: width between the two maps; the paper's is 128.
        num_states: how many CLS states the tower gives: 6 for 24 blocks.
        output_scale: see `Connector`; LaVIN has none.
    """

    select: Selection = "cls_states"

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 128,
        num_states: int = 6,
        output_scale: float | None = None,
    ) -> None:
        super().__init__(in_dim, out_dim, output_scale)
        self.hidden_dim = hidden_dim
        self.tokens_per_image = num_states
        self.down = nn.Linear(in_dim, hidden_dim)
        self.up = nn.Linear(hidden_dim, out_dim)

    def config(self) -> dict[str, Any]:
        """Return the options from which `build_connector` builds this connector again."""
        return {
            "type": "cls_pyramid",
            "hidden_dim": self.hidden_dim,
            "output_scale": self.output_scale,
        }

    def forward(self, states: Tensor) -> Tensor:
        """Map CLS states [N, V, C] to visual tokens [N, V, D]."""
        states = states.to(self.down.weight.dtype)
        return self.scaled(self.up(F.silu(self.down(states))))


class PatchMLP(Connector):
    """Patches, pooled to a few cells, each through a two-layer MLP; and tokens that see them all.

    The local tokens follow LLaVA's projector (arXiv 2310.03744): linear, GELU, linear, shared by
    all cells. What no single cell shows, such as how many of a thing there are, is left to
    `num_global_tokens` further tokens: every cell is narrowed, all are flattened, and one MLP maps
    them to the tokens. States are layer-normed first, so that one learning rate suits any tower.

    Args:
        in_dim: C, width of the tower's states.
        out_dim: D, width of the language model's input embeddings.
        hidden_dim: H, width between the maps.
        grid: rows and columns of the tower's patch grid.
        num_tokens: local tokens, a square number (16 is 4 x 4 cells); None keeps the whole grid.
        num_global_tokens: tokens that read all cells, put after the local ones.
        position_embedding: add a learned vector to each pooled cell.
        output_scale: see `Connector`.

    Raises:
        ModelError: `num_tokens` is not a square number or is larger than the grid.
    """

    select: Selection = "patches"

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int,
        grid: tuple[int, int],
        num_tokens: int | None = None,
        num_global_tokens: int = 0,
        position_embedding: bool = True,
        output_scale: float | None = None,
    ) -> None:
        super().__init__(in_dim, out_dim, output_scale)
        self.hidden_dim = hidden_dim
        self.grid = grid
        self.num_tokens = num_tokens
        self.num_global_tokens = num_global_tokens
        self.pooled = pooled_grid(grid, num_tokens)
        self.tokens_per_image = math.prod(self.pooled) + num_global_tokens
        self.norm = nn.LayerNorm(in_dim)
        self.position = (
            nn.Parameter(torch.zeros(math.prod(self.pooled), in_dim))
            if position_embedding
            else None
        )
        self.local = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim)
        )
        self.overview = self._overview() if num_global_tokens else None

    def _overview(self) -> nn.ModuleDict:
        """Build the MLP of the global tokens, which reads every (pooled) cell at once."""
        rows, columns = (min(side, GLOBAL_GRID) for side in self.pooled)
        return nn.ModuleDict(
            {
                "pool": nn.AdaptiveAvgPool2d((rows, columns)),
                "narrow": nn.Sequential(nn.Linear(self.in_dim, GLOBAL_CELL_DIM), nn.GELU()),
                "read": nn.Sequential(
                    nn.Linear(rows * columns * GLOBAL_CELL_DIM, self.hidden_dim),
                    nn.GELU(),
                    nn.Linear(self.hidden_dim, self.num_global_tokens * self.out_dim),
                ),
            }
        )

    def reset_parameters(self) -> None:
        """Draw all parameters anew; positions start at zero."""
        super().reset_parameters()
        if self.position is not None:
            nn.init.zeros_(self.position)

    def config(self) -> dict[str, Any]:
        """Return the options from which `build_connector` builds this connector again."""
        return {
            "type": "patch_mlp",
            "hidden_dim": self.hidden_dim,
            "num_tokens": self.num_tokens,
            "num_global_tokens": self.num_global_tokens,
            "position_embedding": self.position is not None,
            "output_scale": self.output_scale,
        }

    def forward(self, states: Tensor) -> Tensor:
        """Map patches [N, K, C] to visual tokens [N, V, D]: local ones by row, then global."""
        states = states.to(self.norm.weight.dtype)
        cells = self.norm(pool_cells(states, self.grid, self.pooled))  # [N, L, C]
        if self.position is not None:
            cells = cells + self.position
        tokens = self.local(cells)  # [N, L, D]
        if self.overview is not None:
            tokens = torch.cat([tokens, self._global_tokens(self.overview, cells)], dim=1)
        return self.scaled(tokens)

    def _global_tokens(self, overview: nn.ModuleDict, cells: Tensor) -> Tensor:
        """Read all cells [N, L, C] into [N, G, D]."""
        map_ = cells.transpose(1, 2).unflatten(2, self.pooled)  # [N, C, rows, columns]
        few = overview["pool"](map_).flatten(2).transpose(1, 2)
        flat = overview["narrow"](few).flatten(1)
        return overview["read"](flat).unflatten(1, (self.num_global_tokens, self.out_dim))


class PlainMLP(Connector):
    """LLaVA's projectors to the letter: one or two linears on every patch, and nothing else.

    Two, with GELU between, are LLaVA 1.5's (arXiv 2310.03744), so a model with this connector can
    be written as transformers' LLaVA. One is the first LLaVA's (arXiv 2304.08485). Nothing sets the
    size of its tokens in training; `enter_at` makes them as large as words once.

    Args:
        in_dim: C, width of the tower's states.
        out_dim: D, width of the language model's input embeddings, and of the hidden layer.
        grid: rows and columns of the tower's patch grid.
        output_scale: root mean square that a fresh connector's tokens have, given states of 1.
        num_linears: 1 or 2.
        image_tokens: "llava", or "llamacpp", CLIP's in its order: no first patch, CLS last.
    """

    select: Selection = "patches"

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: tuple[int, int],
        output_scale: float | None = None,
        num_linears: int = 2,
        image_tokens: str = "llava",
    ) -> None:
        super().__init__(in_dim, out_dim, None)
        if image_tokens == "llamacpp":
            self.select = "patches_then_cls"
        self.start_scale = output_scale
        self.grid = grid
        self.tokens_per_image = math.prod(grid)
        self.num_linears = num_linears
        more = [nn.GELU(), nn.Linear(out_dim, out_dim)] if num_linears == 2 else []
        self.local = nn.Sequential(nn.Linear(in_dim, out_dim), *more)
        if output_scale is not None:
            self.enter_at(output_scale)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, to the scale of the start."""
        super().reset_parameters()
        if self.start_scale is not None:
            self.enter_at(self.start_scale)

    @torch.no_grad()
    def enter_at(self, scale: float, states: Tensor | None = None) -> None:
        """Scale the last linear, once, so that the tokens have a root mean square on average.

        Args:
            scale: of the tokens, as `embedding_scale` measures it.
            states: [N, K, C] to measure with; None takes noise of root mean square 1.
        """
        weight = self._last.weight
        if weight.is_meta:
            return
        if states is None:
            noise = torch.Generator().manual_seed(0)
            cells = math.prod(self.grid)
            states = torch.randn(1, cells, self.in_dim, generator=noise).to(weight.device)
        size = self(states).float().pow(2).mean(dim=-1).sqrt().mean()
        for parameter in self._last.parameters():
            parameter.mul_(scale / size)

    @property
    def _last(self) -> nn.Linear:
        return cast(nn.Linear, self.local[-1])

    def config(self) -> dict[str, Any]:
        """Return the options from which `build_connector` builds this connector again."""
        if self.num_linears == 1:
            return {"type": "linear", "output_scale": self.start_scale}
        order = {} if self.select == "patches" else {"image_tokens": "llamacpp"}
        return {"type": "patch_mlp", "plain": True, "output_scale": self.start_scale, **order}

    def forward(self, states: Tensor) -> Tensor:
        """Map patches [N, K, C] to visual tokens [N, K, D], by row."""
        return self.local(pool_cells(states.to(self._last.weight.dtype), self.grid, self.grid))


def pooled_grid(grid: tuple[int, int], num_tokens: int | None) -> tuple[int, int]:
    """Return the grid that `num_tokens` cells make.

    >>> pooled_grid((7, 7), 16)
    (4, 4)
    >>> pooled_grid((7, 7), None)
    (7, 7)
    """
    if num_tokens is None:
        return grid
    side = math.isqrt(max(num_tokens, 0))
    if side * side != num_tokens or not 1 <= side <= min(grid):
        allowed = [str(n * n) for n in range(1, min(grid) + 1)]
        raise ModelError(
            f"connector.num_tokens is {num_tokens}; this tower's {grid[0]} x {grid[1]} cells can be"
            f" pooled to {', '.join(allowed)}, or left as they are with null"
        )
    return side, side


def pool_cells(states: Tensor, grid: tuple[int, int], pooled: tuple[int, int]) -> Tensor:
    """Average a row-major grid of states [N, K, C] into a smaller one [N, L, C]."""
    if states.shape[1] != math.prod(grid):
        raise ModelError(
            f"the connector was built for {grid[0]} x {grid[1]} cells and was given"
            f" {states.shape[1]} states an image"
        )
    if grid == pooled:
        return states
    cells = states.transpose(1, 2).unflatten(2, grid)  # [N, C, rows, columns]
    return F.adaptive_avg_pool2d(cells, pooled).flatten(2).transpose(1, 2)


@torch.no_grad()
def embedding_scale(embeddings: nn.Embedding, sample: int = 8192) -> float:
    """Return the mean root mean square of a language model's input embeddings.

    Args:
        embeddings: the embedding module. It is called, not read: some scale what they look up.
        sample: how many words to measure, evenly spaced over the vocabulary.
    """
    step = max(embeddings.num_embeddings // sample, 1)
    ids = torch.arange(0, embeddings.num_embeddings, step, device=embeddings.weight.device)
    return embeddings(ids).float().pow(2).mean(dim=-1).sqrt().mean().item()


def _cls_pyramid(tower: VisionTower, out_dim: int, hidden_dim: int = 128, **rest: Any) -> Connector:
    tower.check("cls_states")
    states = tower.num_states("cls_states")
    return ClsPyramid(tower.width, out_dim, hidden_dim, num_states=states, **rest)


def _patch_mlp(
    tower: VisionTower, out_dim: int, hidden_dim: int = 512, plain: bool = False, **rest: Any
) -> Connector:
    if plain:
        made = PlainMLP(tower.width, out_dim, tower.grid, **rest)
        tower.check(made.select)
        return made
    return PatchMLP(tower.width, out_dim, hidden_dim, tower.grid, **rest)


def _linear(tower: VisionTower, out_dim: int, output_scale: float | None = None) -> Connector:
    return PlainMLP(tower.width, out_dim, tower.grid, output_scale, num_linears=1)


CONNECTORS: dict[str, Callable[..., Connector]] = {
    "cls_pyramid": _cls_pyramid,
    "linear": _linear,
    "patch_mlp": _patch_mlp,
}


def build_connector(
    options: Mapping[str, Any], tower: VisionTower, out_dim: int, seed: int | None = None
) -> Connector:
    """Build a connector for a tower and a language width.

    Args:
        options: `type`, `cls_pyramid`, `linear` or `patch_mlp` (default), and that connector's
            arguments.
        tower: the vision tower it reads.
        out_dim: D, width of the language model's input embeddings.
        seed: draw the parameters from this seed, leaving torch's generator as it was; None draws
            them from torch's generator.

    Raises:
        ModelError: unknown type or option, or a tower that cannot give the states it reads.
    """
    rest = dict(options)
    name = rest.pop("type", "patch_mlp")
    if name not in CONNECTORS:
        allowed = ", ".join(CONNECTORS)
        raise ModelError(f"connector {name!r} is not one of {allowed}{nearest(name, CONNECTORS)}")
    try:
        if seed is None:
            return CONNECTORS[name](tower, out_dim, **rest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return CONNECTORS[name](tower, out_dim, **rest)
    except TypeError as error:
        raise ModelError(f"connector {name!r}: {error}") from error
