"""Fields of chat requests that are known and not supported, and the values that change nothing.

Clients send them with such values as a matter of course: `tools: []`, `presence_penalty: 0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from varifocal.errors import nearest

_Allows = Callable[[Any], bool]
Known = Mapping[str, tuple[_Allows, str]]


def _one_of(*values: Any) -> _Allows:
    """Allow these values; 0 and 0.0 are the same, true and 1 are not."""

    def allows(value: Any) -> bool:
        return any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in values
        )

    return allows


def _anything(value: Any) -> bool:
    return True


UNSUPPORTED: Known = {
    # OpenAI's
    "n": (_one_of(1), "it writes one answer to a request"),
    "tools": (_one_of([]), "it calls no tools"),
    "tool_choice": (_one_of("none", "auto"), "it calls no tools"),
    "functions": (_one_of([]), "it calls no functions"),
    "function_call": (_one_of("none", "auto"), "it calls no functions"),
    "parallel_tool_calls": (_one_of(True, False), "it calls no tools"),
    "logit_bias": (_one_of({}), "it biases no tokens"),
    "presence_penalty": (_one_of(0), "it has no penalties"),
    "frequency_penalty": (_one_of(0), "it has no penalties"),
    "modalities": (_one_of(["text"]), "it writes text"),
    "audio": (_one_of(), "it does not speak"),
    "prediction": (_one_of(), "it takes no predictions"),
    "reasoning_effort": (_one_of(), "its models have no such setting"),
    "verbosity": (_one_of("medium"), "its models have no such setting"),
    "web_search_options": (_one_of(), "it does not search"),
    "store": (_one_of(False), "it stores nothing"),
    "service_tier": (_anything, ""),
    "prompt_cache_key": (_anything, ""),
    "prompt_cache_retention": (_anything, ""),
    "safety_identifier": (_anything, ""),
    # what clients of llama.cpp, vLLM and text-generation-webui send besides
    "top_k": (_one_of(0, -1), "it samples by temperature and top_p"),
    "min_p": (_one_of(0), "it samples by temperature and top_p"),
    "top_a": (_one_of(0), "it samples by temperature and top_p"),
    "tfs_z": (_one_of(1), "it samples by temperature and top_p"),
    "typical_p": (_one_of(1), "it samples by temperature and top_p"),
    "repeat_penalty": (_one_of(1), "it has no penalties"),
    "repetition_penalty": (_one_of(1), "it has no penalties"),
    "dynatemp_range": (_one_of(0), "it samples by temperature and top_p"),
    "xtc_probability": (_one_of(0), "it samples by temperature and top_p"),
    "dry_multiplier": (_one_of(0), "it has no penalties"),
    "mirostat": (_one_of(0), "it samples by temperature and top_p"),
    "ignore_eos": (_one_of(False), "an answer ends where the model ends it"),
    "cache_prompt": (_anything, ""),
}
"""Fields that are known, the values of theirs that change nothing, and why others are refused."""

OF_RESPONSES: Known = {
    "previous_response_id": (_one_of(), "it stores no answers; send the whole conversation"),
    "conversation": (_one_of(), "it stores no conversations; send the whole of it"),
    "store": (_one_of(False), "it stores nothing"),
    "background": (_one_of(False), "it stores no answers to come back for"),
    "prompt": (_one_of(), "it stores no prompts"),
    "tools": (_one_of([]), "it calls no tools"),
    "tool_choice": (_one_of("none", "auto"), "it calls no tools"),
    "parallel_tool_calls": (_one_of(True, False), "it calls no tools"),
    "max_tool_calls": (_anything, ""),
    "include": (_one_of([]), "an answer is its text and its usage"),
    "reasoning": (_one_of({}), "its models have no such setting"),
    "truncation": (_one_of("disabled"), "it cuts no conversation"),
    "top_logprobs": (_one_of(0), "chat completions tell log-probabilities"),
    "stream_options": (_anything, ""),
    "service_tier": (_anything, ""),
    "prompt_cache_key": (_anything, ""),
    "prompt_cache_retention": (_anything, ""),
    "safety_identifier": (_anything, ""),
}
"""The same of the Responses API."""

OF_MESSAGES: Known = {
    "refusal": (_one_of(), "it takes no refusals"),
    "tool_calls": (_one_of([]), "it calls no tools"),
    "function_call": (_one_of(), "it calls no functions"),
    "audio": (_one_of(), "it does not speak"),
    "annotations": (_one_of([]), "it takes no annotations"),
}


OF_PARTS: Known = {"cache_control": (_anything, "")}

OF_ITEMS: Known = {"id": (_anything, ""), "status": (_anything, ""), "phase": (_anything, "")}

OF_INPUT_PARTS: Known = {
    "annotations": (_anything, ""),
    "logprobs": (_anything, ""),
    "file_id": (_one_of(), "it stores no files"),
    "prompt_cache_breakpoint": (_anything, ""),
}

OF_TEXT: Known = {"verbosity": (_one_of("medium"), "its models have no such setting")}


def refuse_extras(extras: Mapping[str, Any], known: Known, model: type[BaseModel]) -> None:
    """Refuse a field that would change the answer, or that nobody knows.

    Raises:
        PydanticCustomError: its context names the field.
    """
    for name, value in extras.items():
        if value is None:
            continue
        if name not in known:
            hint = nearest(name[:100], [*model.model_fields, *known])
            raise misfit(name, f"this server does not know this field{hint}")
        allows, why = known[name]
        if not allows(value):
            raise misfit(name, f"this server cannot do that: {why}; leave {name} out")


def misfit(name: str, message: str) -> PydanticCustomError:
    """Say what is wrong with a field, for a validator of the object that it is in."""
    return PydanticCustomError("misfit", "{message}", {"message": message, "field": name})
