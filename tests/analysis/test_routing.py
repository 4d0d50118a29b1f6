"""Routing: who uses which factors, by MMA's tables and by MixLoRA's choices."""

from types import SimpleNamespace

import pytest
import torch

from varifocal.analysis.routing import FactorUsage, measure_routing, usage_of_tables
from varifocal.analysis.tasks import encode_tasks, load_tasks
from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.tuners import record_routing, routing_table


def test_usage_worked_by_hand():
    usage = FactorUsage(
        torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0]]).double()
    )
    assert usage.load.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0])
    # (1/2 ln 2 + 1/3 ln 3 + 1/6 ln 6) / ln 4
    assert usage.entropy == pytest.approx(0.7295739585)
    assert usage.overlap.tolist() == [[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 1]]
    assert usage.mean_overlap == pytest.approx(2 / 3)
    alike = FactorUsage(torch.full((2, 4), 0.25))
    assert (alike.entropy, alike.mean_overlap) == pytest.approx((1, 1))


def test_a_task_with_some_images_lies_between_the_modalities():
    table = torch.tensor([[1.0, 0.0], [0.2, 0.8]])
    usage = usage_of_tables({"norm": table}, [0.0, 0.25, 1.0])["norm", "branches"]
    assert torch.allclose(usage.shares[:, 0], torch.tensor([1.0, 0.8, 0.2]))


def opened(root):
    recipe, parts = open_run(root)
    drawn = load_tasks(recipe.data, per_task=3)
    samples, _ = encode_tasks(drawn, parts.encoder, "fail")
    return parts, samples


def test_mma_is_read_from_its_tables(make_run):
    parts, samples = opened(make_run("mma"))
    found = measure_routing(parts.model, samples)
    tables = routing_table(parts.model)
    assert list(found.routers) == [(name, "branches") for name in tables]
    for name, table in tables.items():  # all questions are text
        assert torch.equal(found.routers[name, "branches"].shares, table[:1].expand(3, 2))
    assert list(found.by_layer()) == ["layer 0", "layer 1", "layer 2"]
    assert torch.allclose(found.overlap, torch.ones(3, 3))


def test_mixlora_is_counted_choice_by_choice(make_run):
    parts, samples = opened(make_run("mixlora"))
    told = []
    found = measure_routing(parts.model, samples, progress=lambda *at: told.append(at))
    assert told[-1] == (9, 9)
    counts = {}
    for task, own in enumerate(samples.values()):
        for sample in own:
            ids = torch.tensor([sample.input_ids[:-1].tolist()])  # a line break ends the template
            mask = torch.tensor([sample.prompt_mask[:-1].tolist()])
            with torch.no_grad(), record_routing(parts.model) as records:
                parts.model(input_ids=ids, prompt_mask=mask)
            for record in records:
                for pool, factors in (("A", record.factors_a), ("B", record.factors_b)):
                    for factor in factors.flatten().tolist():
                        key = (record.layer, pool, task, factor)
                        counts[key] = counts.get(key, 0) + 1
    assert len(found.routers) == 3 * 2 * 2  # layers, linears, pools
    for (layer, pool), usage in found.routers.items():
        for task in range(3):
            row = [counts.get((layer, pool, task, factor), 0) for factor in range(4)]
            assert sum(row) == 3 * 2  # examples, rank
            expected = [count / sum(row) for count in row]
            assert usage.shares[task].tolist() == pytest.approx(expected)
    by_layer = found.by_layer()
    assert [len(routers) for routers in by_layer.values()] == [4, 4, 4]


def test_experts_are_counted_by_the_mean_weight_of_a_tasks_tokens(make_run):
    parts, samples = opened(make_run("lora_experts"))
    found = measure_routing(parts.model, samples)
    weights = {}
    for task, own in enumerate(samples.values()):
        for sample in own:
            ids = torch.tensor([sample.input_ids[:-1].tolist()])  # a line break ends the template
            with torch.no_grad(), record_routing(parts.model) as records:
                parts.model(input_ids=ids)
            for record in records:
                assert len(record.rows) == ids.shape[1]
                weights.setdefault((record.layer, task), []).append(record.scores_a)
    assert {pool for _, pool in found.routers} == {"experts"}
    assert len(found.routers) == 3 * 2  # layers, linears
    for (layer, _), usage in found.routers.items():
        for task in range(3):
            expected = torch.cat(weights[layer, task]).mean(dim=0)
            torch.testing.assert_close(usage.shares[task], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["mma", "mixlora"])
def test_text_that_is_left_to_the_base_is_not_routed(make_run, method):
    parts, samples = opened(make_run(method))
    parts.model.active_peft_config.text_route = "base"
    with pytest.raises(ModelError, match="no example has an image"):
        measure_routing(parts.model, samples)
    if method == "mma":
        first = next(iter(samples))
        of_image = [SimpleNamespace(modality=1)] * 2
        found = measure_routing(parts.model, {**samples, first: of_image})
        assert found.tasks == [first]
        assert list(found.counts) == [len(of_image)]
