"""The page in a real browser: a person's ways through it, before an engine with a script."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch

from varifocal.data.example import Image
from varifocal.serving.request import Piece, QueueFull, Request

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("AXE", ROOT / ".venv" / "axe")) / "node_modules/axe-core/axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

CODE = "So <b>it</b> is:\n\n```python\nprint('a < b')\n```\nand `one` more."
MARKDOWN = r"""# Head
| a | b |
|:--|--:|
| 1 | **2** |

- one
  - [x] two

7. seven

Euler: $e^{i\pi} + 1 = 0$, \(x^2\), prices of $5 and $6.

$$
\frac{1}{2} \href{https://elsewhere.example}{x}
$$

[good](https://example.org/a?b=1&c=2) [bad](javascript:alert(1)) [data](data:text/html,x)
![a cat](https://elsewhere.example/cat.png) ![x](data:image/svg+xml,x)
<img src=x onerror="document.title='broken'"><script>document.title = "broken"</script>

```html
<script>document.title = "broken"</script>
```
"""
SCRIPTS = {"code": [CODE], "markdown": [*re.split(r"(?<=\n)", MARKDOWN)]}


class Scripted:
    """Answers by a script: `say X` says X, `slowly` waits for `go`, `busy` is refused twice."""

    has_adapter, load_images = True, True
    routes = ("base", "text")
    window, base_takes_no_images = 2048, True
    routing = {  # noqa: RUF012
        f"model.layers.{at}.input_layernorm": torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        for at in range(4)
    }

    def __init__(self) -> None:
        self.asked: list[tuple[list[Any], Any, bool]] = []
        self.requests: list[Request] = []
        self.go = threading.Event()
        self.refusals = 2

    def submit(self, messages, sampling, *, adapter=True, images=True, client="") -> Request:
        words = " ".join(part for part in messages[-1].content if isinstance(part, str))
        if words == "busy" and self.refusals:
            self.refusals -= 1
            raise QueueFull("2 requests wait already")
        seen = any(isinstance(part, Image) for turn in messages for part in turn.content)
        route = "base" if not adapter else "image" if seen else "text"
        request = Request([0] * 7, sampling, route)  # type: ignore[arg-type]
        self.asked.append((messages, sampling, adapter))
        self.requests.append(request)
        threading.Thread(target=self.work, args=(request, words, adapter), daemon=True).start()
        return request

    def work(self, request: Request, words: str, adapter: bool) -> None:
        pieces = SCRIPTS.get(words) or ["It ", f"answers {words}"]
        if not adapter:
            pieces = ["Base ", f"answers {words}"]
        for index, piece in enumerate(pieces):
            if index and words == "slowly":
                while not self.go.wait(0.01) and not request.is_cancelled:
                    pass
            if request.is_cancelled:
                request.finish("cancelled")
                return
            request.completion_tokens += 1
            request.give(Piece(piece))
        request.finish("length" if words == "cut" else "stop")

    def stats(self) -> SimpleNamespace:
        return SimpleNamespace(running=0, waiting=0)

    def close(self, drain: bool = False) -> None:
        self.go.set()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def address(engine, serving) -> Iterator[str]:
    with serving(engine) as url:
        yield url


@contextmanager
def visiting(browser, url: str, **options: Any):
    """Open the page as a new visitor; scripts must not fail, nor the policy be broken."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on(
        "console",
        lambda line: mistakes.append(line.text) if "Security Policy" in line.text else None,
    )
    page.goto(url)
    page.wait_for_selector("#examples button", state="attached")
    yield page
    context.close()
    assert not mistakes


@pytest.fixture
def page(browser, address):
    with visiting(browser, address) as page:
        yield page


def ask(page, text: str) -> None:
    page.get_by_label("Your question", exact=True).last.fill(text)
    page.keyboard.press("Enter")


def answered(page, text: str, column: str = "adapted") -> None:
    page.locator(f".answer.{column} .body", has_text=text).last.wait_for()
    page.locator("#send").wait_for()


def small_print(page) -> str:
    return page.locator(".small").inner_text().replace("\u00a0", " ")


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def png(colour: str = "red", side: int = 32) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def choose(page, *files: tuple[str, str, bytes]) -> None:
    there = page.locator("#attached li").count()
    page.locator("#files").set_input_files(
        [{"name": name, "mimeType": kind, "buffer": content} for name, kind, content in files]
    )
    page.locator("#attached li").nth(there + len(files) - 1).wait_for()


def images(engine: Scripted, turn: int = -1) -> list[Any]:
    message = engine.asked[-1][0][turn]
    return [part for part in message.content if isinstance(part, Image)]


def test_the_limits_of_the_server_are_known_before_something_is_sent(
    browser, engine, serving
) -> None:
    with (
        serving(engine, max_images=1, max_text_chars=100) as url,
        visiting(browser, url) as page,
    ):
        page.locator(
            "#limits", has_text="Up to 1 image a conversation. It remembers 2,048"
        ).wait_for()
        choose(page, ("a.png", "image/png", png()), ("b.png", "image/png", png("blue")))
        page.locator(
            "#notice", has_text="takes 1 image a conversation, and this would be 2"
        ).wait_for()
        ask(page, "kept")
        assert page.locator("#question").input_value() == "kept"
        page.get_by_role("button", name="Remove image 2").click()
        ask(page, "W" * 101)
        page.locator("#notice", has_text="takes 100 characters").wait_for()
        assert not engine.asked
        ask(page, "short")
        answered(page, "It answers short")


def test_a_model_without_sight_has_no_image_button(browser, engine, serving) -> None:
    engine.load_images = None
    with serving(engine) as url, visiting(browser, url) as page:
        page.locator("#limits", has_text="This model reads text, no images.").wait_for()
        assert page.get_by_role("button", name="Add images").count() == 0
        assert page.locator("#welcome").inner_text().startswith("Ask a question\n")


def test_words_stream_in_as_text_and_the_small_print_counts_them(page, engine) -> None:
    ask(page, "slowly")
    page.locator(".body", has_text="It").wait_for()  # before the rest is written
    assert page.locator(".body").get_attribute("aria-busy") == "true"
    assert page.locator(".body").get_attribute("aria-live") == "polite"
    engine.go.set()
    answered(page, "It answers slowly")
    assert page.locator(".body").get_attribute("aria-busy") == "false"
    small = small_print(page)
    assert small.startswith("read as words alone · 7 tokens read · 2 written · first word after")
    assert "tokens/s" in small
    assert page.locator("#status").inner_text() == "The answer is complete"


def test_what_a_model_writes_is_text_with_code_set_apart(page) -> None:
    ask(page, "code")
    answered(page, "So <b>it</b> is:")
    assert page.locator(".body b").count() == 0
    assert page.locator(".body pre code").inner_text() == "print('a < b')"
    assert page.locator(".body pre").get_attribute("data-language") == "python"
    assert page.locator(".body p code").inner_text() == "one"
    assert "```" not in page.locator(".body").inner_text()


def test_markdown_tables_lists_formulas_and_links_are_rendered_and_nothing_else(page) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    ask(page, "markdown")
    answered(page, "broken")
    body = page.locator(".body")
    assert body.locator("h3").inner_text() == "Head"
    assert body.locator("td strong").inner_text() == "2"
    assert body.locator("td").nth(1).get_attribute("align") == "right"
    assert body.locator("li li").inner_text() == "☑ two"
    assert body.locator("ol").get_attribute("start") == "7"
    assert body.locator(".katex").count() == 3
    assert body.locator(".katex-display .mfrac").count() == 1
    assert "prices of $5 and $6." in body.inner_text()
    links = body.locator("a[href]")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.org/a?b=1&c=2",
        "https://elsewhere.example/cat.png",
    ]
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer nofollow"}
    assert {link.get_attribute("target") for link in links.all()} == {"_blank"}
    assert links.nth(1).inner_text() == "[image: a cat]"
    assert body.locator("img, script, [onerror], [style*=url]").count() == 0
    assert page.title() == "tiny · Varifocal"
    assert body.locator(".hljs-tag").count() > 0
    assert not [url for url in asked if "127.0.0.1" not in url]


def test_an_answer_that_grows_keeps_the_blocks_that_are_whole(page) -> None:
    page.evaluate(r"""async () => {
        const { show } = await import("/page/markdown.js");
        const body = document.createElement("div");
        const copied = [];
        const text = "a\n\n```js\nlet x = 1;\n```\n\n[b][l]";
        show(body, text, (code) => copied.push(code));
        const [first, code] = body.children;
        show(body, `${text} and\n\nmore`, (code) => copied.push(code));
        if (body.children[0] !== first || body.children[1] !== code) throw new Error("drawn anew");
        if (body.children.length !== 4) throw new Error(body.textContent);
        show(body, `${text} and\n\nmore\n\n[l]: https://example.org`, null);
        if (!body.querySelector("a[href]")) throw new Error("a late definition is lost");
        code.querySelector("button").click();
        if (copied.join() !== "let x = 1;") throw new Error(copied);
    }""")


def test_a_large_photograph_is_made_smaller_and_a_small_image_is_sent_as_it_is(
    page, engine
) -> None:
    choose(page, ("photo.jpg", "image/jpeg", jpeg(3000, 1500)), ("dot.png", "image/png", png()))
    ask(page, "what is this")
    answered(page, "It answers what is this")
    large, small = images(engine)
    assert large.open().size == (1024, 512)
    assert small.data == png()
    assert small_print(page).startswith("read as words and images")
    page.get_by_role("button", name="Look at image 1 of 2").click()
    page.locator("#viewer[open] #viewed").wait_for()
    place, image = page.locator("#viewed-place"), page.locator("#viewed")
    assert place.inner_text() == "1 of 2"
    page.keyboard.press("ArrowRight")
    assert place.inner_text() == "2 of 2"
    assert image.get_attribute("alt") == "Image 2 of your question: what is this"
    page.keyboard.press("ArrowRight")
    before = image.bounding_box()["width"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert image.bounding_box()["width"] > 1.2 * before
    page.keyboard.press("0")
    assert image.bounding_box()["width"] == before
    page.keyboard.press("Escape")
    assert page.locator("#viewer[open]").count() == 0
    assert page.locator(".images.grid button").count() == 2


def test_images_are_pasted_dropped_and_removed(page, engine) -> None:
    give = """([kind, content]) => {
        const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "x.png", { type: "image/png" }));
        const event = kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
            : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
        document.querySelector("main").dispatchEvent(event);
    }"""
    coloured = [base64.b64encode(png(colour)).decode() for colour in ("red", "blue")]
    page.evaluate(give, ["paste", coloured[0]])
    page.locator("#attached li").wait_for()
    page.evaluate(give, ["dragover", coloured[1]])
    page.locator("#drop").wait_for()
    page.evaluate(give, ["drop", coloured[1]])
    page.locator("#attached li").nth(1).wait_for()
    assert page.locator("#drop").is_hidden()
    page.get_by_role("button", name="Remove image 1").click()
    ask(page, "which")
    answered(page, "It answers which")
    assert [image.data for image in images(engine)] == [png("blue")]


def test_what_is_no_image_is_refused_in_words(page) -> None:
    page.locator("#files").set_input_files(
        {"name": "bad.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    page.locator("#notice", has_text="bad.png is no image").wait_for()
    page.locator("#files").set_input_files(
        {"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"}
    )
    page.locator("#notice", has_text="Only images can be added").wait_for()
    assert page.locator("#attached li").count() == 0


def test_escape_stops_and_the_answer_is_tried_again(page, engine) -> None:
    ask(page, "slowly")
    page.locator(".body", has_text="It").wait_for()
    page.keyboard.press("Escape")
    page.locator(".small", has_text="stopped").wait_for()
    request = engine.requests[0]
    for _ in range(500):
        if request.finish_reason:
            break
        page.wait_for_timeout(10)
    assert request.finish_reason == "cancelled"  # its slot is free
    assert page.locator(".body").inner_text().strip() == "It"
    engine.go.set()
    page.get_by_role("button", name="Try again: this answer").click()
    answered(page, "It answers slowly")
    assert page.locator(".turn").count() == 1


def test_a_conversation_outlives_a_reload_with_its_images(page, engine) -> None:
    choose(page, ("dot.png", "image/png", png()))
    ask(page, "one")
    answered(page, "It answers one")
    page.reload()
    page.locator(".bubble", has_text="one").wait_for()
    assert page.locator(".images img").count() == 1
    ask(page, "two")
    answered(page, "It answers two")
    messages = engine.asked[-1][0]
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    assert messages[1].content == ("It answers one",)
    assert images(engine, 0)[0].data == png()


def test_a_reload_in_the_midst_keeps_what_was_written(page) -> None:
    ask(page, "slowly")
    page.locator(".body", has_text="It").wait_for()
    page.reload()
    page.locator(".small", has_text="stopped").wait_for()
    assert page.locator(".body").inner_text().strip() == "It"


def test_a_question_is_edited_and_a_new_conversation_is_empty(page, engine) -> None:
    choose(page, ("dot.png", "image/png", png()))
    ask(page, "frist")
    answered(page, "It answers frist")
    page.get_by_role("button", name="Edit this question").click()
    field = page.locator("#question")
    assert field.input_value() == "frist"
    page.keyboard.press("Escape")
    assert field.input_value() == ""
    page.get_by_role("button", name="Edit this question").click()
    ask(page, "first")
    answered(page, "It answers first")
    assert page.locator(".turn").count() == 1
    assert len(engine.asked[-1][0]) == 1
    assert len(images(engine)) == 1
    ask(page, "second")
    answered(page, "It answers second")
    page.get_by_role("button", name="Show the version before").click()  # with what followed it
    assert page.locator(".bubble").all_inner_texts() == ["frist"]
    assert page.locator(".versions").inner_text() == "1 of 2"
    ask(page, "third")
    answered(page, "It answers third")
    assert [turn.content[-1] for turn in engine.asked[-1][0]][::2] == ["frist", "third"]
    page.reload()
    page.get_by_role("button", name="Show the version after").click()
    assert page.locator(".bubble").all_inner_texts() == ["first", "second"]
    page.get_by_role("button", name="Edit this question").first.click()
    ask(page, "anew")
    answered(page, "It answers anew")
    assert page.locator(".versions").inner_text() == "3 of 3"
    page.get_by_role("button", name="New conversation").click()
    page.locator("#welcome").wait_for()
    page.reload()
    page.locator("#welcome").wait_for()
    assert page.locator(".turn").count() == 0


def test_conversations_are_listed_searched_named_exported_and_imported(page, tmp_path) -> None:
    choose(page, ("dot.png", "image/png", png()))
    ask(page, "apples")
    answered(page, "It answers apples")
    page.get_by_role("button", name="New conversation").click()
    ask(page, "pears")
    answered(page, "It answers pears")
    listed = page.locator("#conversations .name")
    page.get_by_role("button", name="Conversations").click()
    assert listed.all_inner_texts() == ["pears", "apples"]
    page.get_by_label("Search in conversations").fill("ANSWERS APPLES")
    page.locator("#conversations li").nth(1).wait_for(state="detached")
    page.get_by_label("More for: apples").click()
    page.once("dialog", lambda dialog: dialog.accept("Fruit"))
    page.get_by_role("button", name="Rename: apples").click()
    page.locator("#conversations .name", has_text="Fruit").wait_for()
    saved = {}
    for kind in ("Markdown", "JSON"):
        page.get_by_label("More for: Fruit").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Export as {kind}: Fruit").click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
        page.get_by_label("More for: Fruit").click()
    text = saved["Markdown"].read_text()
    uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    wanted = ["# Fruit", "## Question", f"![image 1]({uri})", "apples", "## tiny"]
    assert text == "\n\n".join([*wanted, "It answers apples\n"])
    assert json.loads(saved["JSON"].read_text())["conversation"]["turns"][0]["images"] == [uri]
    page.get_by_label("More for: Fruit").click()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete: Fruit").click()
    page.locator("#none-found", has_text="Nothing found").wait_for()
    (tmp_path / "other.json").write_text('{"turns": []}')
    page.locator("#import-file").set_input_files(tmp_path / "other.json")
    page.locator("#history-notice", has_text="holds no conversation").wait_for()
    page.locator("#import-file").set_input_files(saved["JSON"])
    page.locator("#conversation-name", has_text="Fruit").wait_for()
    assert page.locator(".images img").get_attribute("src") == uri
    assert page.locator(".body").inner_text() == "It answers apples"


def test_what_is_set_is_sent(page, engine) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt of this conversation").fill("Be brief.")
    page.get_by_text("More about how words are chosen").click()
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Stop at, one text a line").fill("END\n\n##")
    page.get_by_role("button", name="Done").click()
    ask(page, "one")
    answered(page, "It answers one")
    messages, sampling, _ = engine.asked[-1]
    assert (messages[0].role, messages[0].content) == ("system", ("Be brief.",))
    assert (sampling.top_p, sampling.seed, sampling.stop) == (0.9, 7, ("END", "##"))
    page.reload()
    page.locator(".bubble").wait_for()
    assert page.locator("#system").input_value() == "Be brief."
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("#system").input_value() == ""
    assert page.locator("#seed").input_value() == "7"


def test_an_example_is_asked_with_its_image(page, engine) -> None:
    page.get_by_role("button", name="A science question").click()
    page.locator(".small", has_text="read as words and images").wait_for()
    assert len(images(engine)) == 1


def test_two_models_answer_side_by_side_each_with_its_own_past(page, engine) -> None:
    ask(page, "one")
    answered(page, "It answers one")
    page.get_by_label("Next to the base model").check()
    answered(page, "Base answers one", "base")  # the question before is caught up
    ask(page, "two")
    answered(page, "It answers two")
    answered(page, "Base answers two", "base")
    pasts = {adapter: messages[1].content[0] for messages, _, adapter in engine.asked[-2:]}
    assert pasts == {True: "It answers one", False: "Base answers one"}
    told = page.locator(".answer.base .told")
    assert told.last.inner_text() == "The same model before training"
    page.locator("#files").set_input_files(
        {"name": "dot.png", "mimeType": "image/png", "buffer": png()}
    )
    page.locator("#attached li").wait_for()
    ask(page, "three")
    answered(page, "Base answers three", "base")
    assert told.last.inner_text().endswith("it sees your words, not your images")
    boxes = [page.locator(f".answer.{name}").last.bounding_box() for name in ("adapted", "base")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    page.reload()
    page.locator(".answer.base").nth(2).wait_for()
    page.get_by_label("Next to the base model").uncheck()
    assert page.locator(".answer.base").count() == 0


def test_routing_is_drawn_for_the_route_that_answered(page) -> None:
    ask(page, "one")
    answered(page, "It answers one")
    page.get_by_text("How it was routed").click()
    chart = page.locator(".routing svg")
    label = chart.get_attribute("aria-label")
    assert label.startswith("Share of the first branch in 4 layers, text route: from 25 %")
    heights = [float(bar.get_attribute("height")) for bar in chart.locator(".bar").all()]
    assert heights == [0.25 * 72] * 4
    page.get_by_text("As a table").click()
    assert page.locator(".routing tbody tr").first.inner_text().split("\t")[1:] == ["25 %", "50 %"]


def test_a_busy_server_is_asked_again(page, engine) -> None:
    ask(page, "busy")
    page.locator(".small", has_text="The server is busy; asking again").wait_for()
    answered(page, "It answers busy")
    assert engine.refusals == 0


def test_mistakes_are_told_in_words_and_can_be_tried_again(page, engine) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer, in tokens").fill("5000")
    page.get_by_role("button", name="Done").click()
    ask(page, "one")
    page.locator(".failure", has_text="this server writes at most 1024 tokens, not 5000").wait_for()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer, in tokens").fill("12")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Try again: this answer").click()
    answered(page, "It answers one")
    assert engine.asked[-1][1].max_new_tokens == 12
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "two")
    page.locator(".failure", has_text="The server cannot be reached").wait_for()
    page.unroute("**/v1/chat/completions")
    ask(page, "three")
    answered(page, "It answers three")
    assert len(engine.asked[-1][0]) == 3  # the question without an answer is left out


def test_a_connection_that_breaks_leaves_what_was_written(page) -> None:
    body = 'data: {"choices": [{"delta": {"content": "Half an"}}]}\n\n'
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    ask(page, "one")
    page.locator(".failure", has_text="The connection was lost").wait_for()
    assert "Half an" in page.locator(".body").inner_text()


def test_a_server_with_a_key_asks_for_it_once(browser, engine, serving) -> None:
    with serving(engine, api_key="secret") as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.locator("#key-dialog[open]").wait_for()
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#key-dialog[open]").wait_for()
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use this key").click()
        page.locator("#examples button").first.wait_for()
        page.reload()
        page.locator("#examples button").first.wait_for()
        ask(page, "one")
        answered(page, "It answers one")
        assert page.locator("#key-dialog[open]").count() == 0
        context.close()


def test_a_phone_has_a_camera_and_nothing_beyond_its_width(browser, address) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    wide = "document.documentElement.scrollWidth"
    with visiting(browser, address, **phone) as page:
        assert page.get_by_role("button", name="Take a photograph").is_visible()
        assert page.locator("#camera").get_attribute("capture") == "environment"
        assert page.evaluate(wide) == 390
        page.locator("#compare").check()
        ask(page, "W" * 200)
        answered(page, "Base answers", "base")
        page.get_by_text("How it was routed").click()
        assert page.evaluate(wide) == 390
        page.get_by_role("button", name="Settings").click()
        box = page.locator("#settings").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_no_serious_fault_in_any_view(browser, address, scheme, width) -> None:
    if not AXE.is_file():
        pytest.skip("needs axe-core from npm, which `make test-all` installs")
    with visiting(
        browser, address, color_scheme=scheme, viewport={"width": width, "height": 844}
    ) as page:
        faults: dict[str, list[Any]] = {}

        def scan(view: str) -> None:
            page.wait_for_timeout(300)  # colours are compared when nothing fades any more
            found = page.evaluate("axe.run()")["violations"]
            faults[view] = [
                (each["id"], [node["html"] for node in each["nodes"]])
                for each in found
                if each["impact"] in ("serious", "critical")
            ]

        page.evaluate(AXE.read_text())
        scan("start")
        choose(page, ("a.jpg", "image/jpeg", jpeg(300, 200)), ("b.jpg", "image/jpeg", jpeg(9, 9)))
        ask(page, "markdown")
        answered(page, "broken")
        scan("answer")
        page.locator("#compare").check()
        ask(page, "Which?")
        answered(page, "Base", "base")
        page.get_by_text("How it was routed").last.click()
        scan("two models")
        for name in ("Conversations", "Settings"):
            page.get_by_role("button", name=name).click()
            scan(name)
            page.keyboard.press("Escape")
        page.locator(".images button").first.click()
        scan("viewer")
        assert not any(faults.values()), faults


def test_colours_follow_the_system_until_they_are_chosen(browser, address) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    with visiting(browser, address, color_scheme="dark") as page:
        dark = page.evaluate(paper)
        page.get_by_role("button", name="Switch to light colours").click()
        light = page.evaluate(paper)
        assert dark != light
        page.reload()
        assert page.evaluate(paper) == light
        page.get_by_role("button", name="Switch to dark colours").click()
        assert page.evaluate(paper) == dark


def test_the_keyboard_alone_suffices(page, engine) -> None:
    field = page.locator("#question")
    field.focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    page.keyboard.press("Enter")
    answered(page, "two")
    assert engine.asked[-1][0][0].content == ("one\ntwo",)
    page.locator(".skip").focus()
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        shown = page.evaluate(
            "(() => { const e = document.activeElement; const at = e.id === 'question'"
            " ? e.parentElement : e.id === 'compare' ? e.parentElement : e;"
            " return getComputedStyle(at).outlineStyle; })()"
        )
        assert shown != "none", order
        if order[-1] == "Your question":
            break
    wanted = ["Settings", "New conversation", "Edit this question", "Copy this answer"]
    wanted += ["Try again: this answer", "Add images", "Your question"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)


def test_nothing_moves_for_who_wants_it_still(browser, address) -> None:
    moves = "getComputedStyle(document.querySelector('.body > p'), '::after').animationName"
    for wish, name in (("reduce", "none"), ("no-preference", "breathe")):
        with visiting(browser, address, reduced_motion=wish) as page:
            ask(page, "slowly")
            page.locator(".body", has_text="It").wait_for()
            assert page.evaluate(moves) == name
