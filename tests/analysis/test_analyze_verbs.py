"""The verb on small runs: files, schema, repeatability, and every refusal in a sentence."""

import json

import PIL.Image
import pytest

TASKS = ["opposites", "sums", "echoes"]
MATRIX = {
    "trained_parameters",
    "interference",
    "effect",
    "carried_over",
    "sure",
    "pairs",
    "negative",
    "surely_negative",
    "negative_share",
}


@pytest.mark.parametrize("kind", ["lora", "mma", "mixlora"])
def test_interference_of_a_run(run, make_run, kind):
    root = make_run(kind)
    code, out, err = run("analyze", "interference", root, "--examples", 4)
    assert code == 0, err
    assert "gradients 12/12" in err
    page = json.loads((root / "analysis" / "interference.json").read_text())
    assert page["tuner"] == kind
    assert page["estimator"] == "ratio_of_means"
    assert page["examples"] == dict.fromkeys(sorted(TASKS, key=lambda t: (t == "echoes", t)), 4)
    assert {"run", "seed", "split", "data", "vague", "seconds"} <= set(page)
    assert {"layer 0", "layer 1", "layer 2"} <= set(page["layers"])
    assert (
        sum(one["trained_parameters"] for one in page["layers"].values())
        == (page["all"]["trained_parameters"])
    )
    for one in (page["all"], *page["layers"].values()):
        assert set(one) == MATRIX
        for row in range(3):
            assert one["interference"][row][row] in (pytest.approx(1), None)
    assert [page["all"]["interference"][row][row] for row in range(3)] == pytest.approx([1] * 3)
    for name in ("interference.png", "interference-layers.png"):
        with PIL.Image.open(root / "analysis" / name) as image:
            assert min(image.size) > 300
        assert str(root / "analysis" / name) in out.replace("\n", "")
    share = page["all"]["negative_share"]
    assert f"{share:.0%}" in out


def test_interference_repeats_and_takes_options(run, make_run, tmp_path):
    root = make_run("lora")
    options = ["--tasks", "sums,echoes", "--examples", "3", "--layers", "2", "--seed", "4"]
    pages = []
    for name in ("first", "second"):
        out = tmp_path / name
        assert run("analyze", "interference", root, *options, "--out", out)[0] == 0
        pages.append(json.loads((out / "interference.json").read_text()))
    first, second = ({**page, "seconds": 0} for page in pages)
    assert first == second
    assert first["tasks"] == ["sums", "echoes"]
    assert list(first["layers"]) == ["layers 0-1", "layer 2"]
    assert not (root / "analysis").exists()
    out = tmp_path / "third"
    ratios = ["--estimator", "mean_of_ratios", "--out", out]
    assert run("analyze", "interference", root, *options, *ratios)[0] == 0
    third = json.loads((out / "interference.json").read_text())
    assert third["estimator"] == "mean_of_ratios"
    assert third["all"]["effect"] == first["all"]["effect"]
    assert third["all"]["interference"] != first["all"]["interference"]


@pytest.mark.parametrize(("kind", "factors"), [("mma", 2), ("mixlora", 4), ("lora_experts", 3)])
def test_routing_of_a_run(run, make_run, kind, factors):
    root = make_run(kind)
    code, out, err = run("analyze", "routing", root, "--examples", 3)
    assert code == 0, err
    page = json.loads((root / "analysis" / "routing.json").read_text())
    assert page["method"] == kind
    assert page["examples"] == dict.fromkeys(page["tasks"], 3)
    assert len(page["modules"]) == (3 if kind == "mma" else 6)
    for pools in page["modules"].values():
        assert list(pools) == {"mma": ["branches"], "mixlora": ["A", "B"]}.get(kind, ["experts"])
        for pool in pools.values():
            assert set(pool) == {"usage", "load", "entropy", "overlap", "mean_overlap"}
            assert [len(row) for row in pool["usage"]] == [factors] * 3
            assert [sum(row) for row in pool["usage"]] == pytest.approx([1] * 3)
    images = sorted(path.name for path in (root / "analysis").glob("*.png"))
    other = "routing.png" if kind == "mma" else "routing-usage.png"
    assert images == ["routing-overlap.png", other]
    assert "share least" in out


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (
            "lora",
            ["interference", "--tasks", "sum,echoes"],
            "--tasks: no task 'sum'; did you mean 'sums'?",
        ),
        (
            "lora",
            ["interference", "--layers", "none"],
            "--layers none: give 'all', or into how many",
        ),
        ("lora", ["interference", "--layers", "0"], "--layers 0: give 'all'"),
        ("lora", ["interference", "--split", "test"], "two tasks or more are compared"),
        ("lora", ["interference", "--data", "/nowhere"], "no file or folder '/nowhere'"),
        ("lora", ["interference", "--examples", "1"], "Invalid value for '--examples'"),
        ("lora", ["routing"], "a lora adapter has no router"),
        ("mma-unrouted", ["routing"], "this mma adapter was made without a router"),
        (None, ["interference"], "{root} has no adapter yet"),
        (None, ["routing"], "{root} has no adapter yet"),
    ],
)
def test_a_mistake_is_a_sentence(run, make_run, kind, arguments, sentence):
    root = make_run(kind)
    verb, *options = arguments
    code, out, err = run("analyze", verb, root, *options)
    assert code == 2
    assert f"error: {sentence.format(root=root)}" in err
    assert "Traceback" not in out + err
    assert not (root / "analysis").exists()


@pytest.mark.parametrize("verb", ["interference", "routing"])
def test_every_verb_has_help_with_an_example(run, verb):
    code, out, _ = run("analyze", verb, "--help")
    assert code == 0
    assert f"Example: varifocal analyze {verb}" in " ".join(out.split())
