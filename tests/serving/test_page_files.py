"""The page's files, without a browser: whole, served, and held by the content security policy."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from varifocal.serving.api import PAGE, create_app
from varifocal.serving.schema import Question
from varifocal.serving.settings import ServeSettings

FILES = sorted(file.name for file in PAGE.iterdir() if file.is_file())
VENDOR = PAGE / "vendor"
VENDORED = sorted(
    str(file.relative_to(VENDOR)) for file in VENDOR.rglob("*") if file.is_file()
)  # files of others, with VENDORED.md
SCRIPTS = [name for name in FILES if name.endswith(".js")]
VOID = {"meta", "link", "input", "img"}


class Page(HTMLParser):
    """Collects the elements of index.html: (tag, attributes, text inside)."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed((PAGE / "index.html").read_text())

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag) -> None:
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data) -> None:
        for index in self.open:
            self.elements[index][2].append(data.strip())

    def named(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text)) for tag, attrs, text in self.elements if tag in tags]


class Silent:
    """An engine that is only asked what it is."""

    has_adapter, load_images, routing = True, None, None
    routes = ("base", "text")
    window, base_takes_no_images = 2048, True

    def close(self, drain: bool = False) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


@pytest.fixture(scope="module")
def client():
    app = create_app(Silent(), name="tiny")  # type: ignore[arg-type]
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_runs_own_questions_stay_on_this_machine(host, own) -> None:
    settings = ServeSettings(host=host)
    starters = [Question(title="Ours", text="Whose passport is this?", images=[])]
    app = create_app(Silent(), name="tiny", settings=settings, starters=starters)  # type: ignore[arg-type]
    with TestClient(app, base_url="http://localhost") as client:
        questions = client.get("/v1/varifocal/examples").json()
    assert (questions == [each.model_dump() for each in starters]) == own
    assert questions


def text(name: str) -> str:
    return (PAGE / name).read_text()


def test_every_file_is_served_under_the_policy_and_with_a_type_that_browsers_take(client) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in FILES:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        assert answer.content == (PAGE / name).read_bytes()
        kind = answer.headers["content-type"].partition(";")[0]
        if name.endswith(".js"):  # with nosniff a module of another type does not run
            assert kind in ("text/javascript", "application/javascript")
        else:
            assert kind == kinds[Path(name).suffix]
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
    assert client.get("/").text == text("index.html")


def test_index_and_imports_reach_every_file_and_no_other(page) -> None:
    links = [attrs.get("href") for attrs, _ in page.named("link")]
    sources = [attrs.get("src") for attrs, _ in page.named("script")]
    asked = {str(path).removeprefix("page/") for path in links + sources}
    for name in SCRIPTS:
        asked |= set(re.findall(r'(?:from|import) "\./([\w./]+)"', text(name)))
    vendored = {name for name in VENDORED if name.endswith((".js", ".css"))}
    assert asked | {"index.html"} == {*FILES, *(f"vendor/{name}" for name in vendored)}


def test_vendored_files_are_those_of_the_table_each_with_its_licence(client) -> None:
    table = (VENDOR / "VENDORED.md").read_text()
    sums = dict(re.findall(r"\| `([^`]+)` \| `(\w{64})` \|", table))
    files = {
        name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest()
        for name in VENDORED
        if name != "VENDORED.md"
    }
    assert files == sums
    assert {f"{name.partition('/')[0]}/LICENSE" for name in files} <= set(files)
    versions = re.findall(r"(\d+\.\d+\.\d+) \|", table)
    makefile = (PAGE.parents[3] / "Makefile").read_text()
    assert versions
    assert re.findall(r"\w@(\d+\.\d+\.\d+)", makefile.partition("\nvendor:")[2]) == versions
    for name in ("katex/katex.min.js", "katex/fonts/KaTeX_Main-Regular.woff2"):
        answer = client.get(f"/page/vendor/{name}")
        assert answer.status_code == 200
        assert "font-src 'self';" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name) -> None:
    found = set(re.findall(r"""https?://[^\s"')]*|url\([^)]*\)|["']//[^"']+""", text(name)))
    assert found <= {"http://www.w3.org/2000/svg"}  # a namespace, never fetched


def test_no_script_style_or_handler_stands_inside_the_html(page) -> None:
    assert not page.named("style")
    for tag, attrs, _ in page.elements:
        inside = [name for name in attrs if name == "style" or name.startswith("on")]
        assert not inside, f"<{tag}> has {inside}"
    scripts = page.named("script")
    assert scripts
    assert all(attrs.get("src") and not body for attrs, body in scripts)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_never_make_html_or_code_of_a_text(name) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
    )
    assert not re.findall(forbidden, text(name))
    assert not re.findall(r'setAttribute\("style"|cssText', text(name))


def test_what_the_scripts_ask_for_is_on_the_page_once(page) -> None:
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    asked = {one for name in SCRIPTS for one in re.findall(r'\bat\("([\w-]+)"\)', text(name))}
    assert asked
    assert asked <= set(ids)


def test_every_control_has_a_name_for_a_screen_reader(page) -> None:
    for attrs, words in page.named("button"):
        assert words or attrs.get("aria-label"), attrs
    labelled = {attrs.get("for") for attrs, _ in page.named("label")}
    wrapped = {"compare"}  # inside its label
    for attrs, _ in page.named("input", "select", "textarea"):
        assert attrs.get("aria-label") or attrs["id"] in labelled | wrapped, attrs
    assert all(attrs.get("alt") for attrs, _ in page.named("img"))
    for _, attrs, _ in page.elements:
        for told in ("aria-labelledby", "aria-describedby"):
            if told in attrs:
                assert any(other.get("id") == attrs[told] for _, other, _ in page.elements)


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(theme) -> None:
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", text("style.css"))
    colours = {name: luminance(pair[theme]) for name, *pair in found}
    pairs = [(ink, back) for ink in ("ink", "soft") for back in ("paper", "card", "bubble")]
    pairs += [("ink", "code"), ("soft", "code"), ("on-accent", "accent"), ("failure", "card")]
    pairs += [("accent", "paper"), ("accent", "card"), ("failure", "paper")]
    for pair in pairs:
        dim, bright = sorted(colours[name] for name in pair)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, pair  # WCAG 2 AA


def test_the_wheel_holds_the_page() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).parents[2]
    packed = {
        file.distribution_path for file in wheel.WheelBuilder(str(root)).recurse_included_files()
    }
    names = [*FILES, *(f"vendor/{name}" for name in VENDORED)]
    assert {f"varifocal/serving/page/{name}" for name in names} <= packed
