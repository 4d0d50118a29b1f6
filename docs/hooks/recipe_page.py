"""The recipe's page, from the pydantic models: every key with type, default and meaning."""

import re
import types
import typing
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from tables import table_row

_INTRODUCTION = """# Recipe

Every key of a recipe's YAML, made from the models that read it. An unknown key, a wrong type or a
value out of range is an error that names the key and the nearest right one. `--set KEY=VALUE`
overrides one by its dotted name. The same as a schema for editors:
[recipe.schema.json](recipe.schema.json).

A relative path starts at the recipe's own folder, or at `data.root` for data; in a recipe that
ships with Varifocal it starts at the current directory. With `--set` it starts where it would in
the recipe.
"""


def recipe_page(recipe: type[BaseModel]) -> str:
    """Write the page.

    Args:
        recipe: the model of the whole page; its fields are keys or sections of keys.

    Returns:
        Markdown, a heading and a table for each section, in the order of the fields.
    """
    parts = [_INTRODUCTION]
    seen: set[type[BaseModel]] = set()
    _add("", recipe, parts, seen)
    return "\n".join(parts)


def _add(path: str, section: type[BaseModel], parts: list[str], seen: set) -> None:
    """Add a section's table, then those of the sections in it."""
    if section in seen:
        return
    seen.add(section)
    title = f"`{path}`" if path else "All sections"
    if (tag := section.model_fields.get("type")) and isinstance(tag.default, str):
        whole = len(typing.get_args(tag.annotation)) == 1
        title = f"{title}, `type: {tag.default}`" if whole else title
    parts += [f"## {title}", "", _text(section.__doc__ or "") if path else "", ""]
    parts += ["| key | type | default | meaning |", "|---|---|---|---|"]
    parts += [_row(name, field) for name, field in section.model_fields.items()]
    parts.append("")
    for name, field in section.model_fields.items():
        key = f"{path}.{name}".removeprefix(".")
        many = "[n]" if _is_list(field.annotation) else ""
        for inner in _sections_in(field.annotation):
            _add(key + many, inner, parts, seen)


def _row(name: str, field: FieldInfo) -> str:
    meaning = _text(field.description or _meaning(name, field.annotation))
    return table_row((f"`{name}`", _type(field), _default(field), meaning))


def _meaning(name: str, annotation: Any) -> str:
    """What a field without a docstring is: a section, one of several, or the word that says which.

    The word comes as `type: ...`.
    """
    sections = _sections_in(annotation)
    if len(sections) == 1:
        return _text(sections[0].__doc__ or "")
    return "One of the sections below, by its `type`." if sections else f"The section's {name}."


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        tag = getattr(default, "type", None)
        return f"`type: {tag}`" if tag else "its defaults"
    if default is None:
        return "null"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{str(default).lower() if isinstance(default, bool) else repr(default)}`".replace(
        "'", '"'
    )


def _type(field: FieldInfo) -> str:
    bounds = [text for piece in field.metadata for text in _bounds(piece)]
    return " ".join([_name(field.annotation), *bounds])


def _name(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [text for piece in inner[1:] for text in _bounds(piece)]
        return " ".join([_name(inner[0]), *bounds])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        sections = [each for each in inner if _sections_in(each)]
        if len(sections) > 1:
            return "section"
        return " or ".join("null" if each is type(None) else _name(each) for each in inner)
    if origin is tuple:
        return f"list of {_name(inner[0])}"
    if origin is dict:
        return "map"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def _bounds(piece: Any) -> list[str]:
    """Say pydantic's bounds: `ge=1` is "from 1"."""
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    bounds = [piece, *getattr(piece, "metadata", [])]
    return [
        f"{word} {getattr(each, sign):,}"
        for each in bounds
        for sign, word in words.items()
        if isinstance(getattr(each, sign, None), (int, float))
    ]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in _sections_in(inner)]


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple or any(
        _is_list(inner) for inner in typing.get_args(annotation)
    )


def _text(docstring: str) -> str:
    return re.sub(r"\s+", " ", docstring).strip()
