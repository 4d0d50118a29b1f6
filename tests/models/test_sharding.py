"""Several processes, some without an image: nobody waits for a gradient that never comes."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from varifocal.models import distributed
from varifocal.models import grafted as grafted_module

IMAGE, V = 61, 5


def among_others(monkeypatch):
    for module in (distributed, grafted_module):
        monkeypatch.setattr(module, "in_world", lambda: True)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_alone_a_text_batch_leaves_the_connector_alone(grafted):
    grafted.language_model.requires_grad_(False)
    grafted.train()
    assert not grafted(input_ids=torch.tensor([[1, 2, 3]])).logits.requires_grad


def test_among_others_a_text_batch_touches_what_trains(grafted, monkeypatch):
    among_others(monkeypatch)
    grafted.requires_grad_(False)
    grafted.connector.requires_grad_(True)
    grafted.vision_tower.model.encoder.layers[0].mlp.fc1.requires_grad_(True)
    ids = torch.tensor([[1, 2, 3]])
    plain = grafted(input_ids=ids).logits
    assert not plain.requires_grad  # evaluation mode
    touched = grafted.train()(input_ids=ids).logits
    assert torch.equal(touched, plain)
    touched.sum().backward()
    for name, gradient in gradients(grafted).items():
        assert gradient is not None, name
        assert gradient.abs().max() == 0, name
    assert grafted.vision_passes == 0
    with torch.no_grad():
        assert not grafted(input_ids=ids).logits.requires_grad
    grafted.requires_grad_(False)
    assert not grafted(input_ids=ids).logits.requires_grad  # nothing trains: nothing is touched


def test_sharded_parts_run_with_every_process(grafted, monkeypatch):
    among_others(monkeypatch)
    monkeypatch.setattr("transformers.integrations.deepspeed.deepspeed_config", dict)
    ran = []
    for part in (grafted.vision_tower, grafted.connector):
        part.register_forward_hook(lambda module, _args, _out: ran.append(type(module).__name__))
    ids = torch.tensor([[1, 2, 3]])
    sharded = grafted(input_ids=ids).logits
    assert ran == ["TransformersTower", "PatchMLP"]
    ran.clear()
    grafted(input_ids=ids, image_features=torch.empty(0, 16, 24))
    assert ran == ["PatchMLP"]  # where features are given, nobody runs the tower
    assert grafted.vision_passes == 0
    monkeypatch.undo()
    assert torch.equal(grafted(input_ids=ids).logits, sharded)


def train_one_step(rank: int, port: int, make_grafted, images, results) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    grafted = make_grafted()
    grafted.requires_grad_(False)
    grafted.connector.requires_grad_(True)
    model = torch.nn.parallel.DistributedDataParallel(grafted.train())
    if rank == 0:  # one process sees an image, the other only text
        inputs = {"input_ids": torch.tensor([[1, *[IMAGE] * V, 7]]), "pixel_values": images[:1]}
    else:
        inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    model(**inputs).logits.pow(2).mean().backward()
    results[rank] = {name: grad.clone() for name, grad in gradients(grafted).items()}
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_with_a_image_in_one_process_only(make_grafted, images):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        arguments = (port, make_grafted, images, results)
        mp.spawn(train_one_step, arguments, nprocs=2)
        first, second = results[0], results[1]
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
        assert gradient.abs().max() > 0, name
