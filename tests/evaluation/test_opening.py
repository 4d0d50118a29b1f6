"""Any model can be asked: bare, with an adapter, a LLaVA, and one whose images vary in tokens."""

import json

import PIL.Image
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from varifocal.assemble import is_vlm, open_model
from varifocal.data.example import Example, Image, Message
from varifocal.errors import ModelError, RunError
from varifocal.evaluation.benchmark import Answer
from varifocal.evaluation.evaluated_model import EncodedAsker, VlmAsker, open_asker

# peft 0.21 reads a name that transformers 5.23 has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")


@pytest.fixture
def language_model(chat_llama, tokenizer, tmp_path):
    """The directory of a tiny language model."""
    chat_llama.float().save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def adapter(language_model, tmp_path):
    """A LoRA that does something."""
    base = LlamaForCausalLM.from_pretrained(language_model)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def pictured(tmp_path):
    """A question with a wide image, and one with a square one."""
    found = []
    for name, size in (("wide", (56, 28)), ("square", (28, 28))):
        PIL.Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")
        content = (Image(tmp_path / f"{name}.png"), "What?")
        messages = (Message("user", content), Message("assistant", ("red",)))
        found.append(Example(messages, name, choices=("red", "a box"), answer_index=0))
    return found


@pytest.fixture
def llava_next(llava, tmp_path):
    """A random LLaVA-NeXT: it cuts an image into tiles, so that its tokens depend on its size."""
    tokenizer = hf.AutoTokenizer.from_pretrained(llava)
    old = hf.AutoConfig.from_pretrained(llava)
    config = hf.LlavaNextConfig(
        vision_config=old.vision_config.to_dict(),
        text_config=old.text_config.to_dict(),
        image_token_index=old.image_token_index,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    hf.LlavaNextForConditionalGeneration(config).save_pretrained(tmp_path / "next")
    side = {"height": 28, "width": 28}
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    hf.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=hf.AutoProcessor.from_pretrained(llava).chat_template,
    ).save_pretrained(tmp_path / "next")
    return tmp_path / "next"


def asked(example):
    return Example(example.messages[:-1], example.id, choices=example.choices)


# Opening


def test_a_language_model_is_asked_with_and_without_an_adapter(language_model, adapter):
    bare, tuned = open_asker(str(language_model)), open_asker(str(language_model), adapter)
    example = Example((Message("user", ("Which?",)),), "q", choices=("red", "a box"))
    scores = [
        one.asker.score([one.asker.prepare(example, with_options=True)], "sum")[0].scores
        for one in (bare, tuned)
    ]
    assert abs(scores[0][0] - scores[1][0]) > 1e-3
    assert bare.fingerprint != tuned.fingerprint
    assert open_asker(str(language_model)).fingerprint == bare.fingerprint


def test_a_long_prompt_is_shortened_to_the_window_and_that_is_known(language_model):
    recipe, parts = open_model(language_model)
    assert recipe.data.max_length == parts.base.config.max_position_embeddings == 2048
    example = Example((Message("user", ("long " * 1000,)),), "q")
    prompt = EncodedAsker(parts).prepare(example, with_options=False)
    assert prompt.was_cut
    assert prompt.length <= 2049


def test_a_llava_goes_by_its_encoder(llava, pictured):
    assert not is_vlm(llava)
    asker = open_asker(str(llava)).asker
    assert isinstance(asker, EncodedAsker)
    scores = asker.score([asker.prepare(asked(pictured[0]), with_options=True)], "sum")
    assert len(scores[0].scores) == 2


def test_what_is_neither_run_nor_model_is_said(language_model, adapter, tmp_path):
    with pytest.raises(RunError, match="is no run directory and no model: it has no recipe"):
        open_asker(str(tmp_path))
    with pytest.raises(ModelError, match=f"holds an adapter alone.*--adapter {adapter}"):
        open_asker(str(adapter))
    with pytest.raises(ModelError, match="is no adapter: it has no adapter_config"):
        open_asker(str(language_model), language_model)
    with pytest.raises(RunError, match="is no run directory; 'smolm' is no packaged model"):
        open_asker("smolm")


# A vision-language model as it is


def test_images_of_other_sizes_take_other_numbers_of_tokens(llava_next, pictured):
    assert is_vlm(llava_next)
    asker = open_asker(str(llava_next)).asker
    assert isinstance(asker, VlmAsker)
    lengths = [asker.prepare(asked(one), with_options=False).length for one in pictured]
    assert len(set(lengths)) == 2


def test_its_likelihoods_are_those_of_one_plain_row_an_option(llava_next, pictured):
    opened = open_asker(str(llava_next)).asker
    processor = hf.AutoProcessor.from_pretrained(llava_next)
    model = hf.LlavaNextForConditionalGeneration.from_pretrained(llava_next)
    prompts = [opened.prepare(asked(one), with_options=True) for one in pictured]
    for one, answer in zip(pictured, opened.score(prompts, "sum"), strict=True):
        image = PIL.Image.open(one.images[0].path)
        for option, score in zip(one.choices, answer.scores, strict=True):
            texts = ["USER: <image>\nWhat? ASSISTANT: "]
            texts.append(f"{texts[0]}{option}</s>")
            rows = [processor(text=[t], images=[image], return_tensors="pt") for t in texts]
            start = rows[0]["input_ids"].shape[1]
            ids = rows[1]["input_ids"][0]
            with torch.no_grad():
                logs = model(**rows[1]).logits[0].log_softmax(-1)
            expected = sum(logs[at - 1, ids[at]].item() for at in range(start, len(ids)))
            assert score == pytest.approx(expected, abs=1e-4)


def test_it_writes_what_its_own_generate_writes(llava_next, pictured):
    asker = open_asker(str(llava_next)).asker
    processor = hf.AutoProcessor.from_pretrained(llava_next)
    model = hf.LlavaNextForConditionalGeneration.from_pretrained(llava_next)
    inputs = processor(
        text=["USER: <image>\nWhat? ASSISTANT: "],
        images=[PIL.Image.open(pictured[0].images[0].path)],
        return_tensors="pt",
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    expected = processor.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    prompts = [asker.prepare(asked(pictured[0]), with_options=False)]
    assert asker.write(prompts, 5) == [Answer(expected)]


# The verb


@pytest.fixture
def book(tmp_path):
    """Three questions in ScienceQA's files, in a folder of data."""
    folder = tmp_path / "data" / "scienceqa"
    folder.mkdir(parents=True)
    problem = {"question": "Which?", "choices": ["red", "a box"], "answer": 1, "hint": ""}
    extra = {"image": None, "subject": "natural science", "grade": "grade3"}
    problems = {str(number): {**problem, **extra, "lecture": ""} for number in range(3)}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    return tmp_path / "data"


def test_benchmark_scores_a_model_with_an_adapter(run, language_model, adapter, book, tmp_path):
    options = ("scienceqa", "--data", book, "--adapter", adapter, "--score", "both")
    code, out, _ = run(
        "benchmark", language_model, *options, "--out", tmp_path / "eval", "--limit", 2
    )
    assert code == 0
    names = sorted(file.name for file in (tmp_path / "eval").glob("[!.]*"))
    assert names == [
        f"scienceqa-{way}{end}"
        for way in ("first2", "generate-first2")
        for end in (".json", ".predictions.jsonl")
    ]
    page = json.loads((tmp_path / "eval" / "scienceqa-first2.json").read_text())
    assert (page["items"], page["limit"]) == (2, 2)
    assert page["adapter"] == str(adapter)
    assert page["command"].startswith(f"varifocal benchmark {language_model} scienceqa")
    assert str(tmp_path / "eval" / "scienceqa-first2.json") in out.replace("\n", "")


def test_scores_of_a_model_go_into_runs(run, language_model, book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("benchmark", "lm", "scienceqa")[0] == 0
    assert (tmp_path / "runs" / "lm" / "eval" / "scienceqa.json").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["scienceqaa"], "no suite or benchmark 'scienceqaa'; did you mean 'scienceqa'"),
        ([","], "no suite is named; suites: "),
        (
            ["scienceqa", "--data", "/nowhere"],
            "no data for scienceqa: there is no folder '/nowhere' (name one with --data); it has "
            "to hold ScienceQA's problems.json, pid_splits.json",
        ),
        (["nlvr", "--data", "DATA"], "nlvr: "),
        (
            ["scienceqa", "sciencebook", "--data", "DATA"],
            "no data for sciencebook: there is no folder 'DATA/sciencebook'",
        ),
        (
            ["scienceqa", "--data", "DATA", "--split", "tst"],
            "scienceqa: 'DATA/scienceqa/pid_splits.json' has no split 'tst' but test; did you mean "
            "'test'?",
        ),
    ],
)
def test_a_mistake_is_said_before_the_model_is_loaded(run, book, options, sentence, monkeypatch):
    monkeypatch.setattr("varifocal.evaluation.evaluated_model.open_asker", lambda *given: 1 / 0)
    (book / "README.md").write_text("")
    options = [str(book) if option == "DATA" else option for option in options]
    code, _, err = run("benchmark", "smollm2-135m-instruct", *options)
    assert code == 2
    assert err.startswith(f"error: {sentence.replace('DATA', str(book))}")
    assert "Traceback" not in err


def test_a_stopped_suite_says_how_to_go_on(run, book, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("varifocal.evaluation.evaluated_model.open_asker", stop)
    code, _, err = run("benchmark", "smollm2-135m-instruct", "scienceqa", "--data", book)
    assert code == 130
    assert err.startswith(
        "stopped; the answers are kept; to go on: varifocal benchmark smollm2-135m-instruct"
    )
