"""A tiny chat model over bytes."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tiny import byte_tokenizer, clip_tower, llama_config
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Image
from varifocal.models.connector import PatchMLP
from varifocal.models.grafted import graft
from varifocal.tuners import MMAConfig


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ids 0 to 255, then the special ones."""
    return byte_tokenizer(image_token="<|image|>", ids_are_bytes=True)


@pytest.fixture
def llama(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id}
    config = llama_config(tokenizer, initializer_range=0.4, **ends)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def graft_of(llama, tokenizer) -> tuple[nn.Module, Encoder]:
    """A graft of tiny parts in float64, and its encoder."""
    torch.manual_seed(1)
    tower = clip_tower()
    connector = PatchMLP(16, llama.config.hidden_size, 8, tower.grid)
    encoder = Encoder(tokenizer, "<|image|>", tokens_per_image=connector.tokens_per_image)
    assert encoder.image_token_id is not None
    model = graft(llama.double(), tower.double(), connector.double(), encoder.image_token_id)
    return model.eval(), encoder


@pytest.fixture
def seeing(graft_of) -> tuple[nn.Module, Encoder]:
    """The graft with MMA whose adapters and router do something."""
    model = get_peft_model(graft_of[0], MMAConfig(router_temperature=1.0))
    for name, parameter in model.named_parameters():
        if "mma_" in name or "modality_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval(), graft_of[1]


@pytest.fixture(scope="session")
def load_images():
    """Images as 8 x 8 pixels, as they are."""

    def load(images) -> dict[str, torch.Tensor]:
        pixels = [np.asarray(image.open().resize((8, 8)), np.float64) / 255 for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)}

    return load


@pytest.fixture(scope="session")
def image():
    """An image of one colour."""

    def paint(colour: str) -> Image:
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
        return Image(data=buffer.getvalue())

    return paint


@pytest.fixture(scope="session")
def serving():
    """Serve an engine on a free port of loopback: `with serving(engine, **bounds) as address`."""
    import uvicorn

    from varifocal.serving.api import create_app
    from varifocal.serving.connection import server_config
    from varifocal.serving.settings import ServeSettings

    @contextmanager
    def serve(engine, name="tiny", others=None, **bounds) -> Iterator[str]:
        settings = ServeSettings(**{"port": 0, "drain_s": 5, **bounds})
        app = create_app(engine, name=name, settings=settings, others=others)
        server = uvicorn.Server(server_config(app, settings))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)

    return serve
