"""MMA's routing in a language model: modality tokens in, one table of branch weights a layer out.

LaVIN puts a modality token t_m before the text. It sees only itself and nobody sees it, so its
state in each layer, and with it the branch weights of that layer, depends on nothing but the
parameters and m. The two tokens (text, image) are therefore run through the decoder as a batch of
two one-token rows, once per forward pass, and the other tokens look their weights up.

Dimensions: B rows, T tokens, D width; 2 modalities (0 text, 1 image), 2 branches.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..modality import RowModality, TextRoute, has_no_image
from ..plugin import (
    Contextual,
    cached_length,
    contexts_set,
    plain_execution,
    pop_marks,
    remember_in_recomputation,
    token_shape,
)
from ..sites import token_embedding


@dataclass
class RoutingPass:
    """Context of a layer while the modality tokens run through it.

    Attributes:
        adapter: name of the adapter that runs.
        table: [2, 2] branch weights of each modality; written by the layer.
    """

    adapter: str
    table: Tensor | None = None


@dataclass(frozen=True)
class TokenRouting:
    """Context of a layer while a batch runs through it.

    Attributes:
        adapter: name of the adapter that runs.
        table: [2, 2] branch weights of each modality.
        modality: [B, T, 2] one-hot modality of each token; None where every token is text.
    """

    adapter: str
    table: Tensor
    modality: Tensor | None


class ModalityEmbedding(nn.Module, BaseTunerLayer):
    """The modality tokens E_m [2, D] of one language model decoder, and the hooks that run them.

    It lives next to the decoder's own layers as `modality_embedding`, so that PEFT saves, freezes
    and switches it like any adapter layer. Its pre-hook on the decoder takes `modality_ids` [B, T]
    out of the keyword arguments (None: every token is text) and gives each MMA layer its table and
    the tokens' modalities; its hook after the decoder takes them back.
    """

    # no wrapped layer whose weight BaseTunerLayer could lend
    weight = None  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    bias = None  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    adapter_layer_names = ("mma_embedding",)
    other_param_names = ("layer_names", "text_routes", "_inferred")

    def __init__(self, decoder: nn.Module, reader: nn.Module | None) -> None:
        """Attach to a decoder.

        Args:
            decoder: the module that owns the decoder layers and the token embedding.
            reader: the vision-language model around it that sees `input_ids`, if there is one.
        """
        super().__init__()
        self.mma_embedding = nn.ModuleDict()
        self.layer_names: dict[str, list[str]] = {}
        self.text_routes: dict[str, TextRoute] = {}
        self._inferred: dict[str, tuple[Any, list[Tensor]]] = {}
        self._undo_checkpoints: Any = None
        self._rows = RowModality(reader)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder, with_kwargs=True, always_call=True),
        ]

    def add(self, adapter: str, like: nn.Embedding, text_route: TextRoute) -> None:
        """Add an adapter's two modality tokens, drawn from N(0, 1), next to the token embedding."""
        self.layer_names[adapter] = []
        self.text_routes[adapter] = text_route
        self.mma_embedding[adapter] = nn.Embedding(2, like.embedding_dim)
        if not any(p.is_meta for p in self.mma_embedding[adapter].parameters()):
            weight = like.weight
            self.mma_embedding[adapter].to(device=weight.device, dtype=weight.dtype)

    def remove_hooks(self) -> None:
        """Leave the decoder and its reader as they were found."""
        self._rows.remove_hooks()
        for hook in self._hooks:
            hook.remove()

    def train(self, mode: bool = True) -> "ModalityEmbedding":
        """Set the training mode; the tables kept in evaluation end with it."""
        self._inferred.clear()
        return super().train(mode)

    def tables(self, decoder: nn.Module, adapter: str, *, decoding: bool = False) -> list[Tensor]:
        """Return each layer's routing table [2 modalities, 2 branches], in the layers' order.

        The text row is zero where text is left to the base model.

        In evaluation, where nothing needs a gradient, the tables are computed once and kept until
        a parameter of the decoder changes.

        Args:
            decoder: the decoder this is attached to.
            adapter: the adapter's name.
            decoding: earlier tokens are in a cache; they were routed by the tables that are kept,
                so whether those still hold is not asked again for every token.
        """
        if decoding and not torch.is_grad_enabled() and adapter in self._inferred:
            return self._inferred[adapter][1]
        parameters = list(decoder.parameters())
        if self.training or _needs_grad(parameters) or _is_distributed():
            self._inferred.pop(adapter, None)
            return self._run(decoder, adapter)
        layers = self.layers(decoder, adapter)
        state = _state_of(parameters, [p for m in (self, *layers) for p in m.parameters()])
        inputs, tables = self._inferred.get(adapter, (None, []))
        if inputs is None or inputs[0] != state[0] or not torch.equal(inputs[1], state[1]):
            with torch.no_grad():
                tables = self._run(decoder, adapter)
            self._inferred[adapter] = (state, tables)
        return tables

    def layers(self, decoder: nn.Module, adapter: str) -> list[nn.Module]:
        """List the decoder's layers that hold an adapter, first to last."""
        return [decoder.get_submodule(name) for name in self.layer_names[adapter]]

    def _run(self, decoder: nn.Module, adapter: str) -> list[Tensor]:
        names = list(dict.fromkeys(name for own in self.layer_names.values() for name in own))
        layers = cast(list[Contextual], [decoder.get_submodule(name) for name in names])
        passes = {name: RoutingPass(adapter) for name in names}
        like = _token_weight(decoder)
        tokens = self.mma_embedding[adapter](torch.arange(2, device=like.device))  # [2, D]
        tokens = tokens.to(like.dtype)[:, None]  # [2, 1, D]
        with contexts_set(layers, list(passes.values())), plain_execution(decoder):
            output = decoder.forward(inputs_embeds=tokens, use_cache=False)
        tables = [cast(Tensor, passes[name].table) for name in self.layer_names[adapter]]
        if self.text_routes[adapter] == "base":
            tables = [table * table.new_tensor([[0.0], [1.0]]) for table in tables]
        if _is_distributed():
            # FSDP gathers a layer's weights again when a gradient reaches the layer's output, but
            # the last table leaves its layer before that: a zero from the output calls for them.
            zero = output.last_hidden_state.sum().mul(0).nan_to_num()
            tables = [table + zero for table in tables]
        return tables

    def _adapter(self) -> str | None:
        if self.disable_adapters:
            return None
        active = [name for name in self.active_adapters if name in self.mma_embedding]
        if len(active) > 1:
            raise ValueError(f"MMA runs one adapter at a time; got {active}")
        return active[0] if active else None

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = pop_marks(kwargs).get("modality_ids")
        adapter = self._adapter()
        if adapter is None:
            return args, kwargs
        ids = self._rows.read(given, args, kwargs)
        if self.text_routes[adapter] == "base":
            ids = _unless_all_text(ids, token_shape(args, kwargs), decoder)
        modality = None if ids is None else _one_hot(ids, decoder)
        layers = cast(list[Contextual], self.layers(decoder, adapter))
        past = cached_length(kwargs.get("past_key_values"))
        tables = self.tables(decoder, adapter, decoding=past > 0)
        for layer, table in zip(layers, tables, strict=True):
            layer.context = TokenRouting(adapter, table, modality)
        if torch.is_grad_enabled():
            self._undo_checkpoints = remember_in_recomputation(decoder, layers)
        return args, kwargs

    def _after_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._undo_checkpoints is not None:
            self._undo_checkpoints()
            self._undo_checkpoints = None
        for names in self.layer_names.values():
            for name in names:
                cast(Contextual, decoder.get_submodule(name)).context = None
        self._rows.remember(output)


def _unless_all_text(
    ids: Tensor | None, shape: tuple[int, int], decoder: nn.Module
) -> Tensor | None:
    """Return modality ids [B, T], or None where the adapter may be left out for the whole batch.

    Only without gradients and on one process: each process has to run each adapter, for a gradient
    of zero too.
    """
    if not torch.is_grad_enabled() and not _is_distributed():
        return None if has_no_image(ids) else ids
    like = _token_weight(decoder)
    return torch.zeros(shape, dtype=torch.long, device=like.device) if ids is None else ids


def _one_hot(ids: Tensor, decoder: nn.Module) -> Tensor:
    """Turn modality ids [B, T] into one-hot rows [B, T, 2]; an id out of range is an error."""
    like = _token_weight(decoder)
    eye = torch.eye(2, dtype=like.dtype, device=like.device)
    return F.embedding(ids.to(like.device), eye)


def _token_weight(decoder: nn.Module) -> Tensor:
    return cast(nn.Embedding, token_embedding(decoder)).weight


def _needs_grad(parameters: list[nn.Parameter]) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in parameters)


def _is_distributed() -> bool:
    """Tell whether ranks must agree on every pass: a sharded model gathers weights in each."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _state_of(parameters: list[nn.Parameter], tuned: list[nn.Parameter]) -> tuple[Any, Tensor]:
    """Name the state that routing tables depend on.

    Versions and addresses tell of every in-place operation and replacement. The adapter's own few
    numbers are copied as well: writing through `.data` leaves no trace in the version.
    """
    versions = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)
    return versions, torch.cat([p.detach().flatten().float() for p in tuned])
