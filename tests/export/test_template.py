"""The chat template of an export asks as the run asked, whatever its system prompt says."""

import pytest
from transformers import AutoProcessor, AutoTokenizer

from languages import save_language, sentencepiece
from tiny import byte_tokenizer
from varifocal.assemble import open_run
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Image, Message
from varifocal.exporting.export import export_run
from varifocal.exporting.plain_tensors import chat_template
from varifocal.exporting.request import Order
from varifocal.recipe.chat_templates import CHAT_TEMPLATES

PROMPTS = [
    "Antworte in höchstens fünf Wörtern.",
    "Be brief 🧲.",
    "Say \"yes\" or 'no', never {{ both }} {% raw %} \\ #}.\nThen\tstop.",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_system_prompt_stands_in_the_template_as_it_is(prompt):
    tokenizer = byte_tokenizer()
    encoder = Encoder(tokenizer, system_prompt=prompt)
    template = chat_template(encoder)
    assert "\\u" not in template  # llama.cpp's engine knows no such escape
    asked = Example((Message("user", ("Hi",)),))
    ours = encoder.encode(asked, with_answer=False).input_ids.tolist()
    for turns, start in (
        ([{"role": "user", "content": "Hi"}], f"<s>system\n{prompt}</s>\n<s>user\nHi</s>\n"),
        (
            [{"role": "system", "content": "No."}, {"role": "user", "content": "Hi"}],
            "<s>system\nNo.",
        ),
    ):
        text = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert text.startswith(start)
        text.encode()  # no halves of characters
        if len(turns) == 1:
            assert tokenizer(text, add_special_tokens=False).input_ids == ours


ASKED = [{"type": "image"}, {"type": "text", "text": "What is it?"}]


def prompts(place, image):
    """Ask a folder's processor, opened by transformers, for the prompt of a question."""
    processor = AutoProcessor.from_pretrained(place)
    text = processor.apply_chat_template(
        [{"role": "user", "content": ASKED}], add_generation_prompt=True, tokenize=False
    )
    return text.replace(processor.image_token, "<image>")


@pytest.mark.parametrize("form", ["llava", "model"])
def test_an_export_writes_prompts_by_the_named_template_of_its_run(make_run, tmp_path, image, form):
    data = {"chat_template": "vicuna_v1", "system_prompt": "Be brief."}
    run = make_run({"type": "none"}, data=data)
    (done,) = export_run(Order(run, form, num_prompts=2), tmp_path / "out")
    expected = "Be brief. USER: <image>\nWhat is it? ASSISTANT:"
    assert prompts(done.directory, image) == prompts(run.root, image) == expected
    _, parts = open_run(run.root)
    example = Example((Message("user", (Image(path=image), "What is it?")),))
    ids = parts.encoder.encode(example, with_answer=False).input_ids.tolist()
    placeholder = parts.processor.image_token
    text = parts.encoder.tokenizer.decode(ids).replace(placeholder * 16, "<image>")
    assert text == expected
    tokenizer = AutoTokenizer.from_pretrained(run.root)
    assert tokenizer.chat_template == AutoProcessor.from_pretrained(run.root).chat_template


def test_a_merged_language_model_has_the_named_template(make_run, tmp_path):
    run = make_run({"type": "lora"}, tower=None, data={"chat_template": "lavin_chat"})
    (done,) = export_run(Order(run, "merged", num_prompts=2), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(done.directory)
    turns = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "Image: N/A Instruction: Hi\nResponse:"


@pytest.mark.slow
def test_llama_cpp_writes_named_templates_as_the_run(make_run, tmp_path, ask_llama_cpp):
    tokenizer = sentencepiece()
    special = ["<|im_start|>", "<|im_end|>"]
    save_language(tmp_path / "lm", tokenizer=tokenizer, special=special, template=None)
    turns = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "The fox."},
        {"role": "user", "content": "And its house?"},
    ]
    jobs, expected = [], []
    for name in CHAT_TEMPLATES:
        data = {"chat_template": name}
        run = make_run({"type": "none"}, tower=None, language=tmp_path / "lm", data=data)
        done = export_run(Order(run, "gguf", num_prompts=2), tmp_path / name)[0]
        encoder = open_run(run.root)[1].encoder
        jobs.append({"model": str(done.directory / "model.gguf"), "turns": turns})
        expected.append(encoder.template.render(turns, add_generation_prompt=True))
    found = [answer["chat"] for answer in ask_llama_cpp(jobs)]
    assert found == [text.removeprefix("<s>") for text in expected]
