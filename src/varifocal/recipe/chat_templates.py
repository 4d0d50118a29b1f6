"""What `data.chat_template` may be: a name, a file of Jinja, or a template's own text."""

from pathlib import Path
from typing import Literal, get_args

ChatTemplateName = Literal["vicuna_v1", "llava_plain", "llama2", "chatml", "lavin", "lavin_chat"]
CHAT_TEMPLATES: tuple[str, ...] = get_args(ChatTemplateName)
SETS_IMAGE_TOKEN = "{%- set image_token = "
"""What a chosen template holds in front: it writes images by itself, so contents are parts."""

_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")


def is_jinja(choice: str) -> bool:
    """Tell a chat template's own text from its name or its file's.

    >>> is_jinja("{{ messages[0].content }}"), is_jinja("vicuna_v1")
    (True, False)
    """
    return "{{" in choice or "{%" in choice


def is_template_file(choice: str) -> bool:
    """Tell a chat template's file from its name and its text.

    >>> is_template_file("my.jinja"), is_template_file("vicuna_v1")
    (True, False)
    """
    return not is_jinja(choice) and (Path(choice).suffix in _SUFFIXES or "/" in choice)
