"""Named chat templates write what the papers' code writes, to the letter and to the id.

The expected texts were written by hand and compared with LLaVA's (c121f04), MLAN's (7ce179a) and
MixLoRA's (af5cc3f) `conversation.py`, and LaVIN's (dd0a1bf) `base_prompt.py` and `model.py`.
`tests/reference_code/prompts.py` repeats that.
"""

import pytest

from languages import byte_level, sentencepiece
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.named_template import FOLDER, SCORING_TEMPLATES, choose_template
from varifocal.data.example import Example, Image, Message
from varifocal.errors import ModelError, RecipeError
from varifocal.recipe import load_recipe
from varifocal.recipe.chat_templates import CHAT_TEMPLATES

IMAGE_TOKEN = "<image>"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)

# name -> one question about an image, two turns, a question without an image, a system prompt
TEXTS = {
    "vicuna_v1": (
        VICUNA + "USER: <image>\nWhat is it? ASSISTANT:",
        VICUNA
        + "USER: <image>\nWhat is it? ASSISTANT: A fox.</s>USER: And now? ASSISTANT: Two.</s>",
        VICUNA + "USER: Who are you? ASSISTANT:",
        "Be brief. USER: <image>\nWhat is it? ASSISTANT:",
    ),
    "llama2": (
        "<s>[INST] <image>\nWhat is it? [/INST]",
        "<s>[INST] <image>\nWhat is it? [/INST] A fox. </s><s>[INST] And now? [/INST] Two. </s>",
        "<s>[INST] Who are you? [/INST]",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhat is it? [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>"
        "\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n",
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llava_plain": (
        "<image>",
        "<image>A fox.\nAnd now?\nTwo.\n",
        "Who are you?\n",
        "Be brief.\n<image>",
    ),
    "lavin": (
        "Image: <image>What is it?\nResponse:",
        "Image: <image>What is it?\nResponse:A fox.</s>\nAnd now?\nResponse:Two.</s>",
        "Image: N/A Who are you?\nResponse:",
        "Be brief.\nImage: <image>What is it?\nResponse:",
    ),
    "lavin_chat": (
        "Image: <image>Instruction: What is it?\nResponse:",
        "Image: <image>Instruction: What is it?\nResponse:A fox.</s>"
        "\nInstruction: And now?\nResponse:Two.</s>",
        "Image: N/A Instruction: Who are you?\nResponse:",
        "Be brief.\nImage: <image>Instruction: What is it?\nResponse:",
    ),
}


def with_tokens(tokenizer):
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN, "<|im_start|>", "<|im_end|>"]}
    )
    return tokenizer


@pytest.fixture(scope="module")
def byte_tokens():
    return with_tokens(byte_level())


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not_legacy"])
def pieces(request):
    return with_tokens(sentencepiece(legacy=request.param))


def encoder_of(tokenizer, name, **options):
    number = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    jinja = choose_template(name, tokenizer, IMAGE_TOKEN)
    return Encoder(tokenizer, IMAGE_TOKEN, number, 1, chat_template=jinja, **options)


@pytest.fixture
def fox(tmp_path):
    return Image(path=tmp_path / "fox.png")


def asked(*content):
    return Message("user", content)


def told(text):
    return Message("assistant", (text,))


def test_every_name_has_its_texts_and_every_file_its_name():
    assert set(TEXTS) == set(CHAT_TEMPLATES)
    files = {file.stem for file in FOLDER.glob("*.jinja")} - {"_content"}
    asked_alone = set(SCORING_TEMPLATES) - {"vicuna_v1_untrimmed"}
    assert files == set(CHAT_TEMPLATES) - {"lavin_chat"} | asked_alone


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_texts_are_the_papers(byte_tokens, fox, name):
    one, two, bare, system = TEXTS[name]
    talk = (asked(fox, "What is it?"), told("A fox."), asked("And now?"), told("Two."))

    def text(*messages, with_answer=False, **options):
        encoded = encoder_of(byte_tokens, name, **options).encode(Example(messages), with_answer)
        return byte_tokens.decode(encoded.input_ids)

    assert text(talk[0]) == one
    assert text(*talk, with_answer=True) == two
    assert text(asked("Who are you?")) == bare
    assert text(talk[0], system_prompt="Be brief.") == system
    assert text(asked("What is it?\n", fox)) == one  # LLaVA's data have images after questions, too


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("vicuna_v1", [" A fox.</s>", " Two.</s>"]),
        ("llama2", [" A fox. </s>", " Two. </s>"]),
        ("chatml", ["A fox.<|im_end|>", "Two.<|im_end|>"]),
        ("llava_plain", ["A fox.\n", "Two.\n"]),  # a line break ends a caption, and nothing else
        ("lavin", ["A fox.</s>", "Two.</s>"]),
        ("lavin_chat", ["A fox.</s>", "Two.</s>"]),
    ],
)
def test_answers_are_trained_to_their_end(byte_tokens, fox, name, trained):
    encoder = encoder_of(byte_tokens, name)
    talk = (asked(fox, "What is it?"), told("A fox."), asked("And now?"), told("Two."))
    encoded = encoder.encode(Example(talk))
    spans, before = [], True
    for number, is_prompt in zip(encoded.input_ids, encoded.prompt_mask, strict=True):
        if not is_prompt:
            spans += [[]] if before else []
            spans[-1].append(number)
        before = bool(is_prompt)
    assert [byte_tokens.decode(span) for span in spans] == trained
    assert byte_tokens.decode([encoder.end_of_turn_id]) == trained[-1][-1:] or trained[-1].endswith(
        byte_tokens.decode([encoder.end_of_turn_id])
    )


def alone(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_ids_are_those_of_the_papers_code(pieces, fox):
    """Their code tokenises a begin of sequence, and what stands around an image, apart."""
    bos, image = pieces.bos_token_id, pieces.convert_tokens_to_ids(IMAGE_TOKEN)
    example = Example((asked(fox, "What is it?"), told("The fox.")))
    text_only = Example((asked("What comes after?"), told("The fox.")))

    def ids(name, example):
        return encoder_of(pieces, name).encode(example).input_ids.tolist()

    assert ids("vicuna_v1", example) == [
        *[bos, *alone(pieces, VICUNA + "USER: "), image],
        *alone(pieces, "\nWhat is it? ASSISTANT: The fox.</s>"),
    ]
    assert ids("llama2", example) == [
        *[bos, *alone(pieces, "[INST] "), image],
        *alone(pieces, "\nWhat is it? [/INST] The fox. </s>"),
    ]
    assert ids("llava_plain", example) == [bos, image, *alone(pieces, "The fox.\n")]
    answer = [*alone(pieces, "What is it?\nResponse:The fox."), pieces.eos_token_id]
    assert ids("lavin", example) == [bos, *alone(pieces, "Image: "), image, *answer]
    answer = [*alone(pieces, "What comes after?\nResponse:The fox."), pieces.eos_token_id]
    assert ids("lavin", text_only) == [bos, *alone(pieces, "Image: N/A"), *answer]


def test_chatml_needs_its_tokens():
    with pytest.raises(ModelError) as caught:
        choose_template("chatml", byte_level())
    assert str(caught.value) == (
        "data.chat_template: chatml writes <|im_start|> and <|im_end|>, which the tokenizer does "
        "not have as tokens; take another template, such as vicuna_v1"
    )


def page(choice):
    return {"model": {"language_model": "lm"}, "data": {"chat_template": choice}}


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("vicuna-v1", "no template 'vicuna-v1'; did you mean 'vicuna_v1'?; known: vicuna_v1, "),
        ("./vicuna_v1", "vicuna_v1': No such file or directory; did you mean 'vicuna_v1'?"),
        (
            "./own.jinja",
            "own.jinja' holds no Jinja, no {{ ... }} or {% ... %}; give a chat template",
        ),
    ],
)
def test_a_wrong_template_is_answered_with_the_nearest(tmp_path, monkeypatch, choice, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jinja").write_text("no template\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(page(choice))
    assert str(caught.value).startswith("data.chat_template: ")
    assert sentence in str(caught.value)


def test_a_file_is_read_into_the_recipe_and_knows_the_placeholder(byte_tokens, fox, tmp_path):
    own = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
        "{{ '[' + image_token + ']' if part.type == 'image' else part.text }}{% endfor %}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (tmp_path / "own.jinja").write_text(own)
    (tmp_path / "recipe.yaml").write_text(
        "model: {language_model: lm}\ndata: {chat_template: own.jinja}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "own.jinja").unlink()
    assert load_recipe(recipe).data.chat_template == own
    encoded = encoder_of(byte_tokens, own).encode(Example((asked(fox, "What?"),)), False)
    text = byte_tokens.decode(encoded.input_ids)
    assert text == "user: [<image>]What?</s>assistant: "
