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
    return _SYSTEM_FIRST.replace("SYSTEM", json.dumps(encoder.system)) + encoder.template.jinja
