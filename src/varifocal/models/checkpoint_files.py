"""What a checkpoint's folder says of itself, read without loading anything: config, index, headers.

Everything here is cheap: JSON files, and the headers of safetensors files. It says in a sentence
which file is damaged, where transformers would end in a traceback or fill memory first.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from varifocal.errors import ModelError

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

MOST_LAYERS = 10_000
"""Layers of a model, at most; published ones have some 130."""
MOST = 10_000_000
"""Of any other size in a config, at most; published vocabularies have 262,208 words."""

_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"}
_COUNTS = {
    "vocab_size",
    *("hidden_size", "n_embd", "d_model", "embed_dim"),
    *("intermediate_size", "n_inner", "ffn_dim"),
    *("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"),
    *("image_size", "patch_size", "num_channels"),
}
_WINDOWS = {"max_position_embeddings", "n_positions"}
_LONGEST = 10**9
"""Tokens that a model can read, at most; published ones read 10,485,760."""
_PERHAPS_NONE = {"head_dim", "num_experts", "num_local_experts", "n_routed_experts"}
"""Numbers that may be 0."""
_SHARES = ("dropout", "_pdrop")
_EPSILONS = ("_eps", "_epsilon")
_POSITIVE = {
    *("rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"),
    *("rotary_emb_base", "rotary_base"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
    "logits_scaling",
}
"""What a model divides by, or raises to a power."""
_FACTORS = {"factor", "short_factor", "long_factor"}
_IN_ROPE = re.compile(r"rope_(scaling|parameters)\.")

RESTORE = "copy or download it again"

_TEXTS = (
    *(CONFIG, INDEX, GENERATION, "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "adapter_config.json"),
)

_QUANTIZED = '"quantization_config"'
_WHOLE = {"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}  # safetensors' names

Shapes = Mapping[str, tuple[int, ...]]
"""A checkpoint's tensors: name -> shape."""


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ModelError: it cannot be read, is not JSON in UTF-8, or holds something else.
    """
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ModelError(f"{file} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise ModelError(f"{file} is damaged, it is no JSON text: {error}; {RESTORE}") from error
    if not isinstance(page, dict):
        raise ModelError(f"{file} is damaged: it should hold a JSON object; {RESTORE}")
    return page


def check_is_readable(folder: Path) -> None:
    """Refuse a folder that holds a pipe or a device: reading one could wait forever.

    Raises:
        ModelError: it holds one.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path} is no file but a pipe, a socket or a device; {RESTORE}")


def check_config_file(file: Path) -> None:
    """Refuse sizes in a `config.json` that no model can have.

    transformers lists as many layer types as a config has layers, so a mistyped depth has to be
    seen before it reads the file.

    Raises:
        ModelError: the file cannot be read, a size is not a whole number in its range, or another
            number would make every output no number.
    """
    page = read_object(file)
    _check_numbers(file, page)
    for key, value in _sizes(page):
        name = key.rpartition(".")[2]
        least = 0 if name in _PERHAPS_NONE else 1
        most = MOST_LAYERS if name in _LAYERS else _LONGEST if name in _WINDOWS else MOST
        for size in value if isinstance(value, list) else [value]:
            if size is not None and not (_is_whole(size) and least <= size <= most):
                raise ModelError(
                    f"{file}: {key} is {value!r:.40}; it must be a whole number from {least} to "
                    f"{most:,}"
                )


def _check_numbers(file: Path, page: Mapping[str, Any], above: str = "") -> None:
    """Refuse numbers with which every output is no number, in the parts of a config too.

    Infinity is a sound bound in some configs, so it is refused by the key alone.
    """
    for key, value in page.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            _check_numbers(file, value, f"{above}{key}.")
        elif not all(_is_sound(above, key, number) for number in values if _is_number(number)):
            raise ModelError(f"{file}: {above}{key} is {value!r:.40}; it must be {_range(key)}")


def _is_sound(above: str, key: str, value: float) -> bool:
    if value != value:  # NaN, which JSON texts of Python may hold
        return False
    if key.endswith(_SHARES):
        return 0 <= value <= 1
    if key.endswith(_EPSILONS):
        return 0 <= value < math.inf
    if key in _POSITIVE or (key in _FACTORS and _IN_ROPE.search(above)):
        return 0 < value < math.inf
    return True


def _range(key: str) -> str:
    """Say what a number may be."""
    if key.endswith(_SHARES):
        return "from 0 to 1"
    if key.endswith(_EPSILONS):
        return "a small number from 0, such as 1e-06"
    return "a number above 0" if key in _POSITIVE | _FACTORS else "a number"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(size: Any) -> bool:
    return _is_number(size) and (isinstance(size, int) or size.is_integer())


def _sizes(page: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config's sizes by their dotted keys, those of its parts too."""
    for key, value in page.items():
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            yield from _sizes(value, f"{above}{key}.")
        elif key in _LAYERS | _COUNTS | _WINDOWS | _PERHAPS_NONE:
            yield f"{above}{key}", value


def weight_paths(folder: Path, weights: str = WEIGHTS) -> list[Path]:
    """Return the weight files that `from_pretrained` reads from a folder; none if it has none.

    Args:
        folder: of a checkpoint.
        weights: the name of its one file; that of an index of several is made of it.

    Raises:
        ModelError: the index is damaged, or names a file that is not there.
    """
    if (folder / weights).exists():
        return [folder / weights]
    index = folder / f"{weights}.index.json"
    if not index.exists():
        return []
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index} is damaged: it has no weight_map; {RESTORE}")
    odd = [place for place in places.values() if not _is_inside(place)]
    if odd:
        raise ModelError(f"{index} is damaged: {odd[0]!r:.60} is no file name; {RESTORE}")
    shards = sorted(set(places.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of {len(shards)} weight files are missing: "
            f"{few(missing)}; copy or download them again"
        )
    return [folder / shard for shard in shards]


def _is_inside(place: Any) -> bool:
    """Tell whether an index names a file in its own folder."""
    if not isinstance(place, str) or not place:
        return False
    return not Path(place).is_absolute() and ".." not in Path(place).parts


def read_shapes(folder: Path) -> Shapes:
    """Read the names and shapes of a folder's tensors from its files' headers.

    Returns:
        Name -> shape; empty for a folder without safetensors files.

    Raises:
        ModelError: a file is damaged, or a tensor is not where the index says.
    """
    files = weight_paths(folder)
    is_packed = _says_quantized(folder / CONFIG)
    headers = {str(file.relative_to(folder)): _header(file, is_packed) for file in files}
    if files and files != [folder / WEIGHTS]:
        places: dict[str, str] = read_object(folder / INDEX)["weight_map"]
        lost = sorted(name for name, shard in places.items() if name not in headers[shard])
        if lost:
            raise ModelError(
                f"{folder / places[lost[0]]} does not hold {len(lost)} of the tensors that "
                f"{INDEX} says it holds: {few(lost)}; {RESTORE}"
            )
    return {name: shape for header in headers.values() for name, shape in header.items()}


def _says_quantized(config: Path) -> bool:
    """Whether a config, or a part of it, has a quantization_config."""
    return config.is_file() and _QUANTIZED in config.read_text("utf-8", errors="replace")


def _header(file: Path, is_packed: bool) -> dict[str, tuple[int, ...]]:
    """Read shapes; `is_packed` is said of quantised weights, which are whole numbers."""
    try:
        with safe_open(file, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            kinds = {name: each.get_dtype() for name, each in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} {_damage(file, error)}") from error
    whole = [name for name, kind in kinds.items() if kind in _WHOLE and name.endswith(".weight")]
    if whole and not is_packed:
        raise ModelError(
            f"{file} holds whole numbers ({kinds[whole[0]]}) as {len(whole)} weights "
            f"({few(whole)}), and {CONFIG} has no quantization_config that says how they are read; "
            f"{RESTORE}"
        )
    return shapes


def _damage(file: Path, error: Exception) -> str:
    """Say what is wrong with a safetensors file that cannot be opened."""
    if not file.is_file():
        return "is no file"
    with file.open("rb") as opened:
        start = opened.read(40)
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, and not the weights themselves; run: git lfs pull"
    size = file.stat().st_size
    what = "is empty" if not size else f"is damaged or cut short ({size:,} bytes; {error})"
    return f"{what}; {RESTORE}"


def damaged_json(folder: Path) -> str | None:
    """Return a sentence for a folder's first damaged JSON file, None if there is none."""
    for file in (folder / name for name in _TEXTS):
        if not file.exists():
            continue
        try:
            read_object(file)
        except ModelError as error:
            return str(error)
    return None


def few(names: list[str]) -> str:
    """List the first names, and tell that there are more.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c, d, …'
    """
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
