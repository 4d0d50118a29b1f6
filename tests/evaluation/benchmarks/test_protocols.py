"""`--protocol`: the prompts and the reading of the papers' code, on cases written by hand.

Prompts and scores were compared with wang-research-lab's mlan (7ce179a), lm_eval (6f81a6b) and
lmms-eval (b218a48) on 1,350 random questions and 27,000 random answers: none differed, POPE's
F1 included. LaVIN's and MixLoRA's prompts are written from eval_mme.py (dd0a1bf), evaluate_mme.py
(af5cc3f) and their conversations.
"""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from languages import byte_level, sentencepiece
from varifocal.assemble import Assembly, OpenedVlm
from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ModelError, RecipeError
from varifocal.evaluation.benchmark import Answer, exact
from varifocal.evaluation.benchmarks.protocols import PROTOCOLS
from varifocal.evaluation.benchmarks.registry import (
    BENCHMARKS,
    SUITES,
    choose_protocol,
    find_folders,
    load_items,
)
from varifocal.evaluation.evaluate import Named, evaluate_benchmarks
from varifocal.evaluation.evaluated_model import EncodedAsker, VlmAsker
from varifocal.evaluation.runner import AskOptions, run

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
PAIRS = [(name, row) for name, rows in PROTOCOLS.items() for row in rows]
pairs = pytest.mark.parametrize(("protocol", "name"), PAIRS)


def asker_of(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    encoder = Encoder(tokenizer, "<image>", tokenizer.convert_tokens_to_ids("<image>"), 1)
    model = LlamaForCausalLM(config).eval()
    return EncodedAsker(Assembly(model, None, encoder, None, None, lambda images: {}))


@pytest.fixture
def load(official_files, tmp_path):
    """A benchmark under a protocol, with its items whose gold answers are moved on by `turn`."""

    def load(protocol, name, turn=0):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        official_files[name](folder, turn)
        row = choose_protocol(protocol, [BENCHMARKS[name]])[0]
        return row, load_items(row, find_folders([row], tmp_path)[name])

    return load


LISTED = "A: iron\nB: wood\nC: a stone"
TEXTS = {  # of each benchmark's first item, or of those that differ
    ("mlan", "race"): {
        0: "User: Context: Ann has a red kite. It flies high.\nQuestion: What has Ann?\n"
        "Choose the best option from the choices provided:\n"
        'A: a kite\nB: a cat\nC: a hat\nD: a car\nAssistant: The best answer is"'
    },
    ("mlan", "openbookqa"): {
        0: "User: Iron is drawn by Choose the best option from the choices provided:\n"
        'A: a magnet\nB: a cup\nC: a book\nD: a leaf\nAssistant: The best answer is"'
    },
    ("mlan", "boolq"): {
        0: "User: Context: It is blue.\nQuestion: is the sky blue?\n"
        "Please answer the question with 'yes' or 'no'.\n"
        'Assistant: The best answer is"'
    },
    ("mlan", "hellaswag"): {
        0: "User: Roof shingle removal: A man sits on a roof. He Choose the best option from the "
        "choices provided to complete the sentence:\n"
        "A: sings.\nB: rips up tiles.\nC: eats soup.\nD: sleeps.\n"
        'Assistant: The best answer is"'
    },
    ("mlan", "realworldqa"): {
        0: VICUNA + "USER: <image>\nWhich way is the car? Choose the best option from below:\n"
        'A: Left\nB: Right\n ASSISTANT: The best answer is "',
        1: VICUNA + "USER: <image>\nPlease provide a short answer to the question: How many cars "
        'are there?\n ASSISTANT: The best answer is "',
    },
    ("mlan", "ai2d"): {
        0: "<image>\n" + VICUNA + "USER: What eats the fly? Choose the best option from below:\n"
        'A: frog\nB: fly\nC: fish\nD: fox\n ASSISTANT: The best answer is "'
    },
    ("mlan", "pope"): {
        0: "<image>\n" + VICUNA + 'USER: Please answer with "yes" or "no":\n'
        'Is there a snowboard in the image?\n ASSISTANT: The best answer is "'
    },
    ("mlan", "gqa"): {
        0: "<image>\n" + VICUNA + 'USER: Please answer the question with "yes" or "no". '
        'Is it overcast?\n ASSISTANT: The best answer is "',
        1: "<image>\n" + VICUNA + "USER: Please provide a short answer to the question: Who is "
        'wearing the dress?\n ASSISTANT: The best answer is "',
    },
    ("mlan", "scienceqa"): {
        0: "<image>\n" + VICUNA + "USER: Question: Which attracts? Choose the best option from "
        f'below:\n{LISTED}\n ASSISTANT: The answer is "',
        1: VICUNA + "USER: Context: Metals shine.\nQuestion: Which shines? Choose the best option "
        f'from below:\n{LISTED}\n ASSISTANT: The answer is "',
    },
    ("lavin", "mme"): {
        0: "Image: <image>Instruction: Is it in Italian? Please answer yes or no.\nResponse:"
    },
    ("mixlora", "mme"): {
        0: VICUNA.replace("user", "human") + "USER: <image>\nIs it in Italian? Please answer yes "
        "or no. ASSISTANT:"
    },
}


@pytest.mark.parametrize(("pair", "texts"), TEXTS.items(), ids=["-".join(pair) for pair in TEXTS])
def test_prompts_are_the_papers_to_the_letter(load, pair, texts):
    tokenizer = byte_level()
    row, items = load(*pair)
    asker = asker_of(tokenizer).with_prompts(row.prompts)
    for number, text in texts.items():
        prompt = asker.prepare(items[number].asked, with_options=False)
        assert tokenizer.decode(prompt.question.prompt_ids) == text


def test_every_pair_has_its_texts():
    assert set(TEXTS) == set(PAIRS)
    assert set(PROTOCOLS["mlan"]) == set(SUITES["mlan"])


@pairs
def test_prompts_do_not_depend_on_the_right_answers(load, protocol, name):
    asker, keys = asker_of(byte_level()), []
    for turn in (0, 1):
        row, items = load(protocol, name, turn)
        styled = asker.with_prompts(row.prompts)
        keys.append([styled.prepare(item.asked, with_options=False).key for item in items])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_text_before_and_after_the_image(load, legacy):
    """LLaVA's code tokenises both apart, and the answer's start with what stands before it."""
    tokenizer = sentencepiece(legacy=legacy)
    row, items = load("mlan", "pope")
    ids = asker_of(tokenizer).with_prompts(row.prompts).prepare(items[0].asked, with_options=False)
    image, rest = tokenizer.convert_tokens_to_ids("<image>"), TEXTS["mlan", "pope"][0][7:]
    alone = tokenizer(rest, add_special_tokens=False).input_ids
    assert ids.question.prompt_ids.tolist() == [tokenizer.bos_token_id, image, *alone]


@pytest.mark.parametrize(
    ("name", "number", "text", "right"),
    [
        ("race", 0, 'A"', True),  # the right one is A, a kite
        ("race", 0, "a", True),
        ("race", 0, "a red kite", True),
        ("race", 0, "kite", False),  # "a kite" is not all there
        ("race", 0, "a kite or a cat", True),  # the first that is all there
        ("race", 0, "B or a kite, I think", True),
        ("race", 0, " A", False),  # nothing is stripped
        ("race", 0, "B. a kite", False),
        ("openbookqa", 0, "a", False),  # case counts here alone
        ("openbookqa", 0, "A", True),
        ("boolq", 1, "True.", True),
        ("boolq", 1, "Yes, it is", True),
        ("boolq", 1, "yes it is", False),
        ("boolq", 0, "FALSE", True),
        ("hellaswag", 0, "eats soup", True),
        ("hellaswag", 0, "he eats hot soup", True),
        ("hellaswag", 0, "c", True),
        ("ai2d", 0, 'frog"', True),
        ("ai2d", 0, "Frog.", True),
        ("ai2d", 0, "a", True),
        ("ai2d", 0, "A) frog", False),
        ("ai2d", 0, "\nA", False),  # nothing stands before the line's end
        ("scienceqa", 0, "iron, of course", True),
        ("scienceqa", 0, "A", True),
        ("scienceqa", 0, "ironing", False),
        ("pope", 0, 'Yes"', True),
        ("pope", 0, "true", True),
        ("pope", 0, "yes there is", False),
        ("gqa", 0, "False.", True),
        ("gqa", 0, "\nno", True),  # a line's end is no end here
        ("gqa", 1, "Woman!", True),
        ("gqa", 1, "the woman", False),
        ("realworldqa", 0, "left", True),
        ("realworldqa", 0, "a", True),
        ("realworldqa", 1, "two", True),
        ("realworldqa", 1, "2 cars", False),
    ],
)
def test_answers_are_read_as_theirs(load, name, number, text, right):
    row, items = load("mlan", name)
    assert exact(items[number], Answer(text, parsed=row.parse(text, items[number]))) == right


def test_pope_is_one_set_whose_recall_leaves_out_what_says_neither(load):
    row, items = load("mlan", "pope")
    texts = ["yes", "no", "no", "yes", "perhaps", "perhaps"]  # the right answers: yes, no, yes ...
    answered = [
        (item, Answer(text, parsed=row.parse(text, item)))
        for item, text in zip(items, texts, strict=True)
    ]
    values = {measure.name: measure.value for measure in row.measure(answered)}
    assert values == pytest.approx(
        {"f1": 50, "precision": 50, "recall": 50, "accuracy": 100 / 3}, abs=1e-9
    )
    assert {measure.count for measure in row.measure(answered)} == {6}
    nothing = [(item, Answer("", parsed=None)) for item in items]
    assert row.measure(nothing)[0].value == 0


@pairs
def test_scores_have_files_of_their_own_that_say_how(load, tmp_path, protocol, name):
    row, items = load(protocol, name)
    asker = asker_of(byte_level()).with_prompts(row.prompts)
    if items[0].example.images:
        asker.write = lambda prompts, most: [Answer("yes")] * len(prompts)
    result = run(row, items[:1], asker, tmp_path, options=AskOptions())
    assert result.name == f"{name}-{protocol}"
    page = json.loads(result.file.read_text())
    assert page["prompts"]["name"] == protocol
    assert page["method"] == "generate"
    assert page["protocol"] == PROTOCOLS[protocol][name].sentence


def test_the_model_goes_on_after_the_start(load):
    """What is scored is what follows the quote, and an opened thought is no reason to drop it."""
    tokenizer = byte_level()
    row, items = load("mlan", "openbookqa")
    asker = asker_of(tokenizer).with_prompts(row.prompts)
    assert asker._read(tokenizer("<think>A", add_special_tokens=False).input_ids) == "<think>A"
    prompt = asker.prepare(items[0].asked, with_options=False)
    ids = torch.tensor(prompt.question.prompt_ids[None])
    with torch.inference_mode():
        wanted = asker.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=3
        )
    (answer,) = asker.write([prompt], 3)
    assert answer.text == tokenizer.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)


def test_what_a_protocol_does_not_know_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="--protocol lavin is known for mme, not for race, boolq"):
        choose_protocol("lavin", [BENCHMARKS[name] for name in ("race", "mme", "boolq")])
    scored = evaluate_benchmarks(
        Named("runs/a"), "mme", AskOptions(), protocol="lavin", score="both", data=tmp_path
    )
    with pytest.raises(RecipeError, match="leave --score both out"):
        next(scored)


def test_a_model_with_frames_around_its_images_is_refused(stranger):
    asker = VlmAsker(OpenedVlm(*stranger, None))
    row = choose_protocol("mixlora", [BENCHMARKS["mme"]])[0]
    with pytest.raises(ModelError, match="tokens around an image of a strange; leave --protocol"):
        asker.with_prompts(row.prompts)


@pytest.fixture
def stranger():
    class Processor:
        tokenizer = byte_level()
        chat_template = "{{ messages }}"

    class Model:
        class config:  # noqa: N801
            model_type = "strange"

    return Model(), Processor()
