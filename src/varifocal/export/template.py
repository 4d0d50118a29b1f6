"""The chat template that goes with an export, so that a question is asked as the run asked it."""

from __future__ import annotations

import json

from varifocal.data.encode import Encoder

_SYSTEM_FIRST = (
    "{%- if messages and messages[0].role != 'system' -%}"
    "{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}"
    "{%- endif -%}{{- '' }}"
)


def chat_template(encoder: Encoder) -> str:
    """Return the run's chat template, with the run's system turn where a talk brings none.

    Others who load an export do not know `data.system_prompt`; without it many templates write a
    default that the run never saw.
    """
    if encoder.system is None:
        return encoder.template.jinja
    return _SYSTEM_FIRST.replace("SYSTEM", _literal(encoder.system)) + encoder.template.jinja


def _literal(text: str) -> str:
    r"""Write a text as a string of Jinja that transformers and llama.cpp read alike.

    llama.cpp's engine fails on `\u00e9`, and transformers reads the pair `\ud83e\uddf2` as two
    halves. So characters stand as they are; what is escaped (line breaks, quotes, backslashes)
    both read alike.

    >>> print(_literal('Größe "in" \\ 🧲'))
    "Größe \"in\" \\ 🧲"
    """
    return json.dumps(text, ensure_ascii=False)
