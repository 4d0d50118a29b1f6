"""YAML that is no page is refused by its line, quickly and without a traceback."""

import pytest

from varifocal.errors import RecipeError
from varifocal.recipe.strict_yaml import parse_yaml, read_page

REPEATED = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcd", "bcde", strict=True)
)  # 10^5 values in five lines: just over the bound


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 0\n? [a, b]\n: c\n", "page:2: a key has to be one word, not a list or a section"),
        ("? {a: b}\n: c\n", "page:1: a key has to be one word"),
        ("seed: !!bool x\n", "page:1: 'x' is no bool"),
        ("a: 1\nseed: !!int x\n", "page:2: 'x' is no int"),
        ("seed: !!float x\n", "page:1: 'x' is no float"),
        ("seed: !!timestamp x\n", "page:1: 'x' is no timestamp"),
        ("seed: !!python/name:os.system\n", "page:1: could not determine a constructor"),
        ("a: 1\na: 2\n", "page:2: the key 'a' stands twice"),
        ("a:\n\t- 1\n", "page:2: found character"),
        ("a: &a [*a]\n", "page:1: an alias stands inside of what it repeats"),
        (REPEATED, "page:5: aliases make over 100,000 values of this"),
        ("[" * 3000, "page: lists or sections stand too deep in one another"),
        ("a: *nobody\n", "page:1: found undefined alias"),
    ],
)
def test_what_is_no_page_is_refused_by_its_line(text, told):
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "page")
    assert str(caught.value).startswith(told)


def test_aliases_of_people_are_read():
    page = parse_yaml("base: &base {lr: 1e-3}\nother: *base\nmore:\n  <<: *base\n  b: 2\n", "page")
    assert page["other"] == {"lr": 0.001}
    assert page["more"] == {"lr": 0.001, "b": 2}


def test_bytes_and_folders_are_sentences(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        read_page(tmp_path / "bytes.yaml")
    (tmp_path / "nul.yaml").write_bytes(b"a: \x00\x01")
    with pytest.raises(RecipeError, match=r"not a YAML page: .*special characters"):
        read_page(tmp_path / "nul.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        read_page(tmp_path)
