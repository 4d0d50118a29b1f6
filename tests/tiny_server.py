"""A server with a tiny model that sees, as a module for the tests and as a process of its own.

`python tiny_server.py BOUNDS` serves with the bounds of a JSON object, prints its address, and
ends when its standard input does.
"""

import json
import sys
import threading

import numpy as np
import torch
import uvicorn
from peft import get_peft_model
from transformers import LlamaForCausalLM

from tiny import byte_tokenizer, clip_tower, llama_config
from varifocal.data.encoding.encoder import Encoder
from varifocal.models.connector import PatchMLP
from varifocal.models.grafted import graft
from varifocal.serving.api import create_app
from varifocal.serving.connection import server_config
from varifocal.serving.engine import Engine
from varifocal.serving.settings import ServeSettings
from varifocal.tuners import MMAConfig


def seeing_engine(tokenizer, **options) -> Engine:
    """A graft with MMA whose adapters and router do something."""
    torch.manual_seed(0)
    text = llama_config(tokenizer, initializer_range=0.4, bos_token_id=tokenizer.bos_token_id)
    tower = clip_tower()
    connector = PatchMLP(16, 32, 8, tower.grid)
    encoder = Encoder(tokenizer, "<|image|>", tokens_per_image=connector.tokens_per_image)
    assert encoder.image_token_id is not None
    model = graft(LlamaForCausalLM(text), tower, connector, encoder.image_token_id)
    model = get_peft_model(model, MMAConfig(router_temperature=1.0)).double()
    for name, parameter in model.named_parameters():
        if "mma_" in name or "modality_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return Engine(model, encoder, load_images, **options)


def load_images(images) -> dict[str, torch.Tensor]:
    """Images as 8 x 8 pixels, as they are."""
    pixels = [np.asarray(image.open().resize((8, 8)), np.float64) / 255 for image in images]
    return {"pixel_values": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)}


def main() -> None:
    torch.set_num_threads(1)
    settings = ServeSettings(port=0, **json.loads(sys.argv[1]))
    engine = seeing_engine(byte_tokenizer(image_token="<|image|>", ids_are_bytes=True))
    app = create_app(engine, name="tiny", settings=settings)
    server = uvicorn.Server(server_config(app, settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    sys.stdout.write(f"{server.servers[0].sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
