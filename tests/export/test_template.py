"""The chat template of an export asks as the run asked, whatever its system prompt says."""

import pytest

from tiny import byte_tokenizer
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.exporting.plain_tensors import chat_template

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
