#!/bin/bash
# pydantic 2.14.3 (pydantic-core 2.50.4), Python 3.11.
#
# pydantic.FailFast is documented as metadata of a list in Annotated: validation stops at the first
# wrong item. A list that may also be absent cannot carry it: `Annotated[list[int], FailFast()] | None`
# raises TypeError, "unhashable type: 'FailFast'", before pydantic sees the type. FailFast is a
# dataclass with eq and without frozen, so Python takes its hash away, and typing.Union hashes its
# members. The other metadata of pydantic that was tried (Field, Strict, Tag, AfterValidator) is
# hashable; `Field(fail_fast=True)` says the same and works in unions.
#
# Seen: "FailFast: unhashable type: 'FailFast'", and for Field one error of three wrong items.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.3
"$place/venv/bin/python" - <<'PY'
from typing import Annotated, Optional

from pydantic import AfterValidator, FailFast, Field, Strict, Tag, TypeAdapter, ValidationError

try:
    Optional[Annotated[list[int], FailFast()]]
except TypeError as error:
    print("FailFast:", error)
    assert "unhashable" in str(error)
else:
    raise SystemExit("FailFast stands in a union now")

for other in (Strict(), Tag("t"), AfterValidator(list)):
    assert Optional[Annotated[list[int], other]]

numbers = TypeAdapter(Optional[Annotated[list[int], Field(fail_fast=True)]])
assert numbers.validate_python([1, 2]) == [1, 2]
assert numbers.validate_python(None) is None
try:
    numbers.validate_python(["a", "b", "c"])
except ValidationError as error:
    print("Field:", error.error_count(), "error")
    assert error.error_count() == 1
PY
