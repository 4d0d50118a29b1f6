"""What every section of the page shares: strict types, no unknown keys, frozen."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Words = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """A part of the page: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


_MOST_BYTES = 200  # of a name; file systems take 255, and hidden names are longer


def check_name(name: str) -> str:
    """Return the name of a run or a sweep if a folder can be called that, in its own place.

    Raises:
        ValueError: it leads elsewhere, is too long, or no file system takes it.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (an unpaired surrogate)") from None
    if name.strip(". ") == "" or any(c in "/\\" or not c.isprintable() for c in name):
        raise ValueError(
            f"{name!r:.80} names a folder in runs/: give letters, digits and signs, no '/' and no "
            "control character; another place is given with --out"
        )
    if size > _MOST_BYTES:
        raise ValueError(f"is {size} bytes long, and a folder's name may have {_MOST_BYTES}")
    return name


RunName = Annotated[str, AfterValidator(check_name)]
"""The name of a folder in `runs`."""
