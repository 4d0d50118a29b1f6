"""lm-eval and lmms-eval ask our models; their numbers are those of our own scoring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from varifocal.assemble import open_model
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError, ModelError
from varifocal.evaluation import harness
from varifocal.evaluation.generation import greedy_answers
from varifocal.evaluation.harness_model import HarnessModel, images_of
from varifocal.models.likelihood import score_options

ROWS = [
    ("Which is a metal?", ["iron", "wood", "wool"], 0),
    ("Which has wings?", ["a dog", "a bird"], 1),
    ("Water at 150 C is", ["a gas", "a liquid", "a solid"], 0),
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: {kind}
test_split: test
doc_to_text: "{text}"
doc_to_target: {target}
target_delimiter: ""
{more}
metadata:
  version: 1.0
"""
CHOICES = """doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true"""
WRITTEN = """generation_kwargs:
  until: ["\\n"]
  max_new_tokens: 5
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true"""


@pytest.fixture(scope="module")
def parts(llava):
    """A random LLaVA, which sees and reads; its tokens are bytes."""
    return open_model(llava)[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(len(ROWS)):
        pixels = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(len(ROWS))]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, images):
    """Task files as a user of both harnesses writes them: YAML next to JSONL."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    records = (
        {"question": text, "choices": choices, "gold": gold, "image": str(image)}
        for (text, choices, gold), image in zip(ROWS, images, strict=True)
    )
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    seen, blind = folder / "lm", folder / "lmms"
    for place in (seen, blind):
        place.mkdir()
    look = "doc_to_visual: !function looks.{}"
    (blind / "looks.py").write_text(
        "from PIL import Image\n"
        "def one(doc):\n    return [Image.open(doc['image']).convert('RGB')]\n"
        "def none(doc):\n    return []\n"
    )
    shared = {"rows": rows, "target": "gold"}
    kinds = {"choose": ("multiple_choice", CHOICES), "write": ("generate_until", WRITTEN)}
    for kind, (output, more) in kinds.items():
        for eyes in ("text", "image"):
            name = f"{kind}_{eyes}"
            lm = more.format(metric="exact_match") if kind == "write" else more
            lmms = more.format(metric="exact_match") if kind == "write" else more
            mark = "doc_to_image: [image]\n" if eyes == "image" else ""
            question = "<image>{{question}}" if eyes == "image" else "{{question}}"
            page = TASK.format(name=name, kind=output, text=question, more=mark + lm, **shared)
            (seen / f"{name}.yaml").write_text(page)
            visual = look.format("one" if eyes == "image" else "none") + "\n"
            page = TASK.format(
                name=name, kind=output, text="{{question}}", more=visual + lmms, **shared
            )
            (blind / f"{name}.yaml").write_text(page)
    return folder


def questions(images, eyes):
    return [
        Example(
            (Message("user", (*([Image(image)] if eyes else []), text)),),
            id=str(number),
            choices=tuple(choices),
            answer_index=gold,
        )
        for number, ((text, choices, gold), image) in enumerate(zip(ROWS, images, strict=True))
    ]


@pytest.fixture
def ask_lm_eval(tasks):
    """Run lm-eval on a task of ours: its results, and the responses by record."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    def run(model, name, **how):
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[name],
            task_manager=TaskManager(include_path=str(tasks / "lm"), include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,
            **how,
        )
        samples = sorted(found["samples"][name], key=lambda one: one["doc_id"])
        return found["results"][name], samples

    return run


@pytest.fixture
def ask_lmms_eval(tasks):
    pytest.importorskip("lmms_eval")
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    def run(model, name, **how):
        found = evaluator.simple_evaluate(
            model=model,
            tasks=[name],
            task_manager=TaskManager(include_path=str(tasks / "lmms"), include_defaults=False),
            bootstrap_iters=0,
            **how,
        )
        samples = sorted(found["samples"][name], key=lambda one: one["doc_id"])
        return found["results"][name], samples

    return run


@pytest.mark.slow
@pytest.mark.parametrize("eyes", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_rates_options_as_we_do(score_choices, ask_lm_eval, parts, images, eyes):
    model = harness.lm_eval_model()(parts, batch_size=2, close_answers=True)
    results, samples = ask_lm_eval(model, f"choose_{'image' if eyes else 'text'}")
    ours = score_choices(parts.model, parts.encoder, questions(images, eyes), parts.load_images)
    for sample, (_, answer) in zip(samples, ours.answered, strict=True):
        theirs = [one[0] for one in sample["filtered_resps"]]
        assert theirs == pytest.approx(answer.scores, abs=1e-5)
    assert 100 * results["acc,none"] == pytest.approx(ours.measures[-1].value)


@pytest.mark.slow
@pytest.mark.parametrize("eyes", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_lmms_eval_rates_options_as_we_do(score_choices, ask_lmms_eval, parts, images, eyes):
    model = harness.lmms_eval_model()(parts, batch_size=2)
    results, samples = ask_lmms_eval(model, f"choose_{'image' if eyes else 'text'}")
    ours = score_choices(parts.model, parts.encoder, questions(images, eyes), parts.load_images)
    for sample, (_, answer) in zip(samples, ours.answered, strict=True):
        theirs = [-one[0] for one in sample["filtered_resps"]]
        assert theirs == pytest.approx(answer.scores, abs=1e-5)
    assert 100 * results["acc,none"] == pytest.approx(ours.measures[-1].value)


@pytest.mark.slow
@pytest.mark.parametrize("eyes", ["text", "image"])
@pytest.mark.parametrize("name", ["lm", "lmms"])
@pytest.mark.filterwarnings("ignore")
def test_a_harness_reads_what_we_write(score_choices, request, parts, images, name, eyes):
    ask = request.getfixturevalue(f"ask_{name}_eval")
    model = getattr(harness, f"{name}_eval_model")()(parts, batch_size=2)
    _, samples = ask(model, f"write_{eyes}")
    ours = score_choices(
        parts.model, parts.encoder, questions(images, eyes == "image"), parts.load_images,
        method="generate", max_new_tokens=5,
    )  # fmt: skip
    for sample, (_, answer) in zip(samples, ours.answered, strict=True):
        assert sample["filtered_resps"][0] == (answer.text or "").split("\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lm", "lmms"])
def test_a_command_line_of_its_own_gives_our_scores(
    score_choices, llava, parts, images, tasks, tmp_path, name
):
    """A fresh process, offline, on local task files: the command that the module's head tells."""
    pytest.importorskip(f"{name}_eval")
    how = ["--model", "varifocal", "--include_path", str(tasks / name), "--log_samples"]
    how += ["--tasks", "choose_text,choose_image", "--output_path", str(tmp_path)]
    if name == "lm":
        start = ["-m", "varifocal.evaluation.harness", "run", "--apply_chat_template"]
        how += ["--model_args", f"model={llava},close_answers=True"]
    else:
        start = ["-m", "lmms_eval"]
        how += ["--model_args", f"model={llava}"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, *start, *how], env=os.environ | offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for eyes in ("text", "image"):
        (file,) = tmp_path.rglob(f"*samples_choose_{eyes}*.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda s: s["doc_id"])
        asked = questions(images, eyes == "image")
        ours = score_choices(parts.model, parts.encoder, asked, parts.load_images)
        for sample, (_, answer) in zip(samples, ours.answered, strict=True):
            theirs = [abs(float(one[0])) for one in sample["filtered_resps"]]
            assert theirs == pytest.approx([-score for score in answer.scores], abs=1e-5)
        right = [sample["acc"] for sample in samples]
        assert 100 * np.mean(right) == pytest.approx(ours.measures[-1].value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_language_model_gets_the_numbers_of_lm_evals_own_class(ask_lm_eval):
    """Texts through lm-eval's `hf` class and through ours, likelihoods and rolling ones."""
    from lm_eval.models.huggingface import HFLM

    parts = open_model("smollm2-135m-instruct")[1]
    theirs = HFLM(pretrained=parts.model, tokenizer=parts.encoder.tokenizer, batch_size=1)
    ours = harness.lm_eval_model()(parts)
    requests = [
        SimpleNamespace(args=(f"Question: {text}\nAnswer:", f" {choice}"))
        for text, choices, _ in ROWS
        for choice in choices
    ]
    requests += [SimpleNamespace(args=("Answer: ", "iron")), SimpleNamespace(args=("", "iron"))]
    for one, other in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True
    ):
        assert one == (pytest.approx(other[0], abs=1e-3), other[1])
    text = SimpleNamespace(args=("Magnets attract iron. Like poles repel each other." * 3,))
    rolled = ours.loglikelihood_rolling([text])
    assert rolled == pytest.approx(theirs.loglikelihood_rolling([text]), abs=1e-3)
    until = {"until": ["."], "max_gen_toks": 12}
    asked = [SimpleNamespace(args=("Magnets attract", dict(until)))]
    assert ours.generate_until(asked) == theirs.generate_until(asked)


@pytest.mark.slow
def test_the_entry_point_of_lmms_eval_names_our_class():
    pytest.importorskip("lmms_eval")
    found = [one for one in entry_points(group="lmms_eval.models") if one.name == "varifocal"]
    if not found:
        pytest.skip("the installed varifocal has no entry point yet")
    from lmms_eval.models import get_model

    assert issubclass(get_model("varifocal"), harness.LmmsEvalRequests)


@pytest.mark.slow
def test_lm_eval_finds_our_class_by_name():
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model

    harness.lm_eval_model()
    assert issubclass(get_model("varifocal"), harness.LmEvalRequests)


def test_options_of_one_prompt_are_read_together_and_score_the_same(parts, images):
    asked = HarnessModel(parts, batch_size=1)
    turns = [
        asked.of_turn(text, [Image(image)], [choice])
        for (text, choices, _), image in zip(ROWS, images, strict=True)
        for choice in choices
    ]
    together = [one.score for one in asked.rate_each(turns)]
    apart = [
        score_options(parts.model, [turn], parts.load_images, tree=False)[0][0] for turn in turns
    ]
    assert together == pytest.approx(apart, abs=1e-5)


def test_what_greedy_decoding_writes_is_said_to_be_greedy(parts):
    asked = HarnessModel(parts)
    prompt = asked.of_text("Iron is", 7, [])
    (ids,) = greedy_answers(parts.model, [prompt], None, stop_ids=(), max_new_tokens=3)
    other = [*ids[:2], (ids[2] + 1) % 256]
    options = tuple(np.array(one, np.int32) for one in (ids, other))
    ((one, two),) = asked.rate([replace(prompt, option_ids=options)])
    assert one.greedy
    assert not two.greedy
    assert one.score > two.score


def test_images_and_their_marks_have_to_agree(parts, images):
    asked = HarnessModel(parts)
    with pytest.raises(DataError, match=r"2 places for images .* and 1 images"):
        asked.of_turn("<image> or <image>?", [Image(images[0])], [])
    with pytest.raises(DataError, match=r"0 places for images .* and 1 images"):
        asked.of_text("What is it?", 11, [Image(images[0])])


def test_images_come_in_the_forms_that_tasks_give(images):
    image = PIL.Image.open(images[0])
    given = [image, [str(images[1])], {"bytes": images[2].read_bytes(), "path": None}]
    found = [np.asarray(one.open()) for one in images_of(given)]
    for one, path in zip(found, images, strict=True):
        np.testing.assert_array_equal(one, np.asarray(PIL.Image.open(path)))
    assert images_of(None) == []
    with pytest.raises(DataError, match="gives a int to look at"):
        images_of(3)


def test_a_model_stays_where_it_is_when_there_is_no_cuda(parts, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert HarnessModel(parts, device="cuda:0").parts.base.device.type == "cpu"


def test_sampling_is_refused(parts):
    asked = HarnessModel(parts)
    with pytest.raises(ModelError, match="do_sample=False,temperature=0"):
        asked.answer([(asked.of_text("a", 1, []), {"temperature": 0.7})])


def test_a_missing_harness_is_named_with_its_mend(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(harness, "import_module", missing)
    with pytest.raises(
        ModelError, match=r"lmms-eval cannot be imported .* install 'lmms-eval>=0.7'"
    ):
        harness.lmms_eval_model.__wrapped__()
    with pytest.raises(ModelError, match=r"lm-eval cannot be imported .* install 'lm-eval>="):
        harness.lm_eval_model.__wrapped__()
