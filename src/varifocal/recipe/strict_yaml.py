"""One strict YAML page into one validated pydantic model.

Knows nothing of what the page is about: it reads YAML without YAML's traps (double keys, `1e-3`
as a string, dates), puts `key=value` overrides on top, and turns pydantic's findings into
sentences that name the dotted path, what was given, what is allowed and the nearest word.
"""

import re
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from varifocal.errors import RecipeError, nearest

Page = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?)$"
    r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)


class WrongKeyError(ValueError):
    """Raised by a section's own check: the key that is wrong, and what is wrong with it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def unread_key(reader: str, key: str, allowed: Collection[str]) -> str:
    """Say that a name given to an optimiser or a schedule is none that it reads.

    >>> unread_key("sgd", "momentun", ["momentum"])
    "sgd does not read momentun; did you mean 'momentum'?"
    """
    hint = nearest(key, allowed) or (f"; it reads {', '.join(allowed)}" if allowed else "")
    return f"{reader} does not read {key}{hint}"


_MOST_NODES = 100_000
"""Values of a page, each counted as often as aliases repeat it; recipes have some hundred."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses double keys, and reads `1e-3` as a number and dates as text.

    What a tag cannot make of its text, keys that are no words, and aliases that repeat themselves
    or would make a page too large, are refused by their line.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r:.40} is no {kind}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key has to be one word, not a list or a section", key.start_mark
                )
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _count_nodes(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """Count a node with all below it, what an alias repeats once for each time.

    Raises:
        ConstructorError: it holds itself, or too many.
    """
    if id(node) in counted:
        number = counted[id(node)]
        if number is None:
            raise yaml.constructor.ConstructorError(
                None, None, "an alias stands inside of what it repeats", node.start_mark
            )
        return number
    counted[id(node)] = None
    below = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        below = [each for pair in node.value for each in pair]
    number = 1 + sum(_count_nodes(each, counted) for each in below)
    if number > _MOST_NODES:
        raise yaml.constructor.ConstructorError(
            None, None, f"aliases make over {_MOST_NODES:,} values of this", node.start_mark
        )
    counted[id(node)] = number
    return number


_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def parse_yaml(text: str, origin: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document.
        origin: what error texts call it, a file name as a rule.

    Returns:
        Plain dicts, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: it is not YAML, or a key stands twice; names the line.

    >>> parse_yaml("learning_rate: 1e-3", "example")
    {'learning_rate': 0.001}
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{origin}{line}: {error.problem or error.context}") from None
    except RecursionError:
        raise RecipeError(f"{origin}: lists or sections stand too deep in one another") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{origin}: not a YAML page: {error}") from None


def read_page(path: Path) -> Page:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RecipeError: the file cannot be read, is not UTF-8, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    page = parse_yaml(text, str(path))
    if not isinstance(page, dict):
        raise RecipeError(f"{path}: a page of 'section: ...' was expected, found {page!r:.60}")
    return page


def as_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Bring overrides into one form: dotted key -> value.

    Args:
        overrides: a mapping of dotted keys to values, or texts `key=value` whose value is YAML.

    >>> as_overrides(["training.learning_rate=1e-3", "data.train[0].path=a.json"])
    {'training.learning_rate': 0.001, 'data.train[0].path': 'a.json'}
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    pairs: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {text}: give it as key=value, such as training.max_steps=100")
        pairs[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return pairs


def put(page: Page, key: str, value: Any) -> None:
    """Set one dotted key of a page in place, making the sections on the way.

    >>> page = {"data": {"train": [{"path": "a"}]}}
    >>> put(page, "data.train[0].path", "b"); put(page, "model.dtype", "float32"); page
    {'data': {'train': [{'path': 'b'}]}, 'model': {'dtype': 'float32'}}
    """
    parts = [part for part in re.split(r"\.|\[(\d+)\]", key) if part]
    place: Any = page
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        here = dotted(parts[:depth]) or "the recipe"
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise RecipeError(f"{key}: {here} is a list of {len(place)}; it has no '{part}'")
            step: Any = int(part)
        elif isinstance(place, dict):
            step = part
            if not last and place.get(part) is None:
                place[part] = {}
        else:
            raise RecipeError(f"{key}: {here} is {place!r}, it has no '{part}'")
        if last:
            place[step] = value
        else:
            place = place[step]


def dotted(location: Iterable[Any]) -> str:
    """Write a location as a person would.

    >>> dotted(("data", "train", 1, "path"))
    'data.train[1].path'
    """
    text = ""
    for part in location:
        is_index = isinstance(part, int) or (isinstance(part, str) and part.isdigit())
        text += f"[{part}]" if is_index else f".{part}"
    return text.removeprefix(".")


def validate(model: type[ModelT], page: Any, context: Mapping[str, Any] | None = None) -> ModelT:
    """Build a model from a page.

    Args:
        model: a section, or the whole page.
        page: as YAML gives it.
        context: what the sections' own checks have to know.

    Raises:
        RecipeError: with one sentence a line for everything that is wrong.
    """
    try:
        return model.model_validate(page, context=dict(context or {}))
    except ValidationError as error:
        findings = error.errors(include_url=False)
        raise RecipeError("\n".join(_sentence(model, dict(each)) for each in findings)) from None


def _sentence(model: type[BaseModel], finding: dict[str, Any]) -> str:
    """Say one of pydantic's findings in the house's words."""
    section, location, others = _walk(model, finding["loc"])
    where = dotted(location) or "the recipe"
    kind, given, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        owners = [_tag(other) for other in others if location[-1] in other.model_fields]
        if section and owners:
            return f"{where}: belongs to type {' or '.join(owners)}, and this is {_tag(section)}"
        allowed = list(section.model_fields) if section else []
        if homes := list(dict.fromkeys(_homes_of(model, str(location[-1])))):
            return f"{where}: unknown key; it belongs to another section: {' or '.join(homes)}"
        hint = nearest(str(location[-1]), allowed) or f"; allowed: {', '.join(allowed)}"
        return f"{where}: unknown key{hint}"
    if kind == "missing":
        return f"{where}: missing"
    if kind == "value_error":
        error = context["error"]
        where = dotted([*location, error.key]) if isinstance(error, WrongKeyError) else where
        return f"{where}: {error}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where}: {given!r:.80} was given; it should be a section of 'key: value' lines"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context["expected_tags"]
        word = context.get("tag", given)
        inner = ".type" if kind == "union_tag_invalid" else ""
        hint = nearest(str(word), re.findall(r"'([^']*)'", expected))
        return f"{where}{inner}: {word!r} is not allowed; one of {expected}{hint}"
    wanted = finding["msg"].replace("Input should be ", "").replace("tuple", "list")
    return f"{where}: {given!r:.80} was given; it should be {wanted}"


def _homes_of(model: type[BaseModel], key: str) -> Iterator[str]:
    """Yield where a recipe's sections have a key, dotted."""
    for name, field in model.model_fields.items():
        if "tuple" not in str(field.annotation):
            for section in _sections_in(field.annotation):
                if key in section.model_fields:
                    yield f"{name}.{key}"


def _walk(
    model: type[BaseModel], location: Iterable[Any]
) -> tuple[type[BaseModel] | None, list[Any], list[type[BaseModel]]]:
    """Follow pydantic's location: the section that holds its last key, and the location as written.

    The last value is the section's siblings in a union by `type`.

    Pydantic puts the chosen member of a tagged union into the location (`tuner.mma.rank`), a name
    that stands nowhere in the file; it is left out.
    """
    sections: list[type[BaseModel]] = [model]
    written: list[Any] = []
    holder: type[BaseModel] | None = model
    others: list[type[BaseModel]] = []
    following: list[type[BaseModel]] = []
    for part in location:
        tagged = [s for s in sections if len(sections) > 1 and _tag(s) == part]
        if tagged:
            following = [section for section in sections if section not in tagged]
            sections = tagged
            continue
        written.append(part)
        others, following = following, []
        if isinstance(part, int):
            continue
        holder = sections[0] if sections else None
        field = holder.model_fields.get(part) if holder else None
        sections = _sections_in(field.annotation) if field else []
    return holder, written, others


def _tag(section: type[BaseModel]) -> Any:
    field = section.model_fields.get("type")
    return field.default if field else None


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in typing.get_args(annotation) for section in _sections_in(inner)]
