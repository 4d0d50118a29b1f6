"""Vision-language models of other makes, tiny and random, asked as they are.

Their processors are built by hand around a tokenizer of bytes, so that nothing is downloaded.
"""

import PIL.Image
import pytest
import torch
import transformers as hf

from varifocal.assemble import OpenedVlm, is_vlm
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answer
from varifocal.evaluation.evaluated_model import VlmAsker, open_asker

# PaliGemma's processor asks numpy for an array in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def with_tokens(tokenizer, *names):
    """Copy the tokenizer of bytes with a model's own special tokens."""
    copy = hf.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        ),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    copy.add_special_tokens({"additional_special_tokens": list(names)})
    return copy


def template(image):
    """Turns as most templates write them, the image's mark in its place."""
    return (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )


def idefics3(tokenizer):
    """Idefics3, which SmolVLM is: an image is cut into tiles, laid out in text."""
    names = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    words = with_tokens(tokenizer, *names)
    config = hf.Idefics3Config(
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(words)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
    )
    images = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    processor = hf.Idefics3Processor(
        images, words, image_seq_len=4, chat_template=template("<image>")
    )
    return hf.Idefics3ForConditionalGeneration, config, processor


def paligemma(tokenizer):
    """PaliGemma: the prompt, image and all, is read in both directions."""
    words = with_tokens(tokenizer, "<image>")
    config = hf.PaliGemmaConfig(
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        text_config={
            **TEXT,
            "model_type": "gemma",
            "head_dim": 8,
            "vocab_size": len(words) + 1100,  # its processor adds places and segments
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 32,
            "vision_use_head": False,
        },
    )
    images = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, words, chat_template=template(""))
    return hf.PaliGemmaForConditionalGeneration, config, processor


MAKES = {"idefics3": idefics3, "paligemma": paligemma}


@pytest.fixture(params=MAKES)
def made(request, tokenizer):
    """(model, processor) of one make."""
    kind, config, processor = MAKES[request.param](tokenizer)
    torch.manual_seed(0)
    return kind(config).eval(), processor


@pytest.fixture
def question(tmp_path):
    PIL.Image.effect_noise((56, 28), 90).convert("RGB").save(tmp_path / "wide.png")
    content = (Image(tmp_path / "wide.png"), "What?")
    return Example((Message("user", content),), "q", choices=("red", "a box"))


def whole_row(processor, prompt, image, option):
    """Let the processor itself lay out prompt and answer, as it does for training."""
    if isinstance(processor, hf.PaliGemmaProcessor):
        row = processor(text=[prompt], images=[image], suffix=[option], return_tensors="pt")
        return {name: value for name, value in row.items() if name != "labels"}
    return processor(text=[f"{prompt}{option}</s>"], images=[image], return_tensors="pt")


def test_likelihoods_are_those_of_one_row_an_option(made, question):
    model, processor = made
    asker = VlmAsker(OpenedVlm(model, processor, None))
    prompt = asker.prepare(question, with_options=True)
    scores = asker.score([prompt], "sum")[0].scores
    image = question.images[0].open()
    start = asker._inputs(prompt.question)["input_ids"].shape[1]
    for option, score in zip(question.choices, scores, strict=True):
        row = whole_row(processor, prompt.question.text, image, option)
        with torch.no_grad():
            logs = model(**row).logits[0].log_softmax(-1)
        ids = row["input_ids"][0]
        expected = sum(logs[at - 1, ids[at]].item() for at in range(start, len(ids)))
        assert score == pytest.approx(expected, abs=1e-4)


def test_the_image_counts_and_blind_works(made, question, tmp_path):
    model, processor = made
    asker = VlmAsker(OpenedVlm(model, processor, None))
    PIL.Image.new("RGB", (56, 28), "blue").save(tmp_path / "blue.png")
    other = Example(
        (Message("user", (Image(tmp_path / "blue.png"), "What?")),), "b", choices=question.choices
    )
    blind = Example((Message("user", ("What?",)),), "t", choices=question.choices)
    prompts = [asker.prepare(one, with_options=True) for one in (question, other)]
    if isinstance(processor, hf.PaliGemmaProcessor):  # it knows no prompt without an image
        with pytest.raises(DataError, match="`images` are expected"):
            asker.prepare(blind, with_options=True)
    else:
        prompts.append(asker.prepare(blind, with_options=True))
    first, *others = asker.score(prompts, "sum")
    assert all(abs(first.scores[0] - other.scores[0]) > 1e-6 for other in others)
    assert len({prompt.sha for prompt in prompts}) == len(prompts)


def test_it_writes_what_generate_writes(made, question):
    model, processor = made
    asker = VlmAsker(OpenedVlm(model, processor, None))
    prompt = asker.prepare(question, with_options=False)
    inputs = asker._inputs(prompt.question)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    written = processor.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert asker.write([prompt], 4) == [Answer(written)]


def test_it_opens_from_a_directory(tokenizer, question, tmp_path):
    kind, config, processor = idefics3(tokenizer)
    kind(config).save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    assert is_vlm(tmp_path / "vlm")
    opened = open_asker(str(tmp_path / "vlm"))
    prompt = opened.asker.prepare(question, with_options=True)
    assert len(opened.asker.score([prompt], "mean")[0].scores) == 2
    assert opened.fingerprint


def test_an_opened_thought_is_closed_before_the_options_and_left_out_of_what_is_read(
    tokenizer, question
):
    kind, config, processor = idefics3(tokenizer)
    opening = "assistant: {% endif %}", "assistant: <think>\n{% endif %}"
    processor.chat_template = processor.chat_template.replace(*opening)
    model = kind(config).eval()
    asker = VlmAsker(OpenedVlm(model, processor, None))
    prompt = asker.prepare(question, with_options=True).question
    assert prompt.text.endswith("assistant: <think>\n\n</think>")
    said = [processor.tokenizer.decode(ids) for ids in prompt.options]
    assert said == [f"\n\n{option}</s>" for option in question.options]
    asked = asker.prepare(question, with_options=False).question
    assert asked.text.endswith("assistant: <think>\n")
    ids = processor.tokenizer("hm\n</think>\n\ntwo").input_ids
    model.generate = lambda **given: torch.cat([given["input_ids"], torch.tensor([ids])], dim=1)
    assert asker.write([asker.prepare(question, with_options=False)], 4) == [Answer("two")]


def test_a_template_that_refuses_names_the_question(tokenizer, question):
    kind, config, processor = idefics3(tokenizer)
    processor.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DataError, match=r"record 'q': no$"):
        VlmAsker(OpenedVlm(kind(config).eval(), processor, None)).prepare(
            question, with_options=True
        )
