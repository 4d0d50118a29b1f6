"""The page of a comparison: what stands in it, what is escaped, how large it gets."""

from __future__ import annotations

import doctest
from html.parser import HTMLParser

from PIL import Image

from varifocal.reports import compare_page
from varifocal.reports.compare_page import MOST_CARDS, MOST_TEXT, page, write_comparison

EVIL = "<script>alert('x')</script>\"&"


def item(kind: str = "won", **changes: object) -> dict:
    return {
        "kind": kind, "id": "7", "question": "Question: Which?\nOptions: (A) attract (B) repel",
        "options": ["attract", "repel"], "gold": "repel", "answers": ["attract", "repel"],
        "read": [True, True], "credits": [0.0, 1.0], "images": [], "tags": {"skill": "magnets"},
        "columns": [], **changes,
    }  # fmt: skip


def found(*items: dict, **changes: object) -> dict:
    interval = {"value": 10.0, "low": 5.0, "high": 15.0}
    line = {"name": "all", "count": 9, "first": interval, "second": interval, "won": 1, "lost": 0,
            "difference": interval, "both": 4, "neither": 4, "p": 1.0}  # fmt: skip
    suite = {"suite": "toy", "shared": 9, "notes": [], "rows": [line], "items": list(items),
             "blind_rules": ["blind rules: always 'repel' 40.0"]}  # fmt: skip
    return {"first": "a", "second": "b", "seed": 0, "notes": [], "suites": [suite]} | changes


class Tags(HTMLParser):
    """Collect start tags, and see that all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened, self.names, self.depth = [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.names.add(tag)
        self.opened.append((tag, dict(attrs)))


def test_both_answers_and_the_right_one_are_shown() -> None:
    text = page(found(item()))
    assert '<li><b>A</b><span>attract</span><em class="first">a</em></li>' in text
    assert '<li class="gold"><b>B</b><span>repel</span><em class="second">b</em></li>' in text
    assert '<p class="question">Which?</p>' in text
    assert "only" not in Tags(text).names
    assert "10.0 <small>5.0 to 15.0</small>" in text


def test_blind_rules_stand_above_the_table() -> None:
    assert "<p>blind rules: always &#39;repel&#39; 40.0.</p>" in page(found())


def test_written_and_unread_answers_stand_beside_the_gold_one() -> None:
    text = page(found(item(options=[], answers=["two cats", "hm"], read=[True, False], gold="2")))
    assert "two cats" in text
    assert "hm <i>(names no answer)</i>" in text
    assert "<b>right</b><span>2</span>" in text


def test_every_text_is_escaped() -> None:
    """Nothing that a data set, a model or a user wrote becomes a tag or an attribute."""
    one = item(question=EVIL, options=[EVIL], gold=EVIL, answers=[EVIL, EVIL], id=EVIL,
               images=[EVIL], tags={EVIL: EVIL})  # fmt: skip
    told = found(one, first=EVIL, second=EVIL, notes=[EVIL])
    told["suites"][0] |= {"suite": EVIL, "notes": [EVIL], "blind_rules": [EVIL]}
    told["suites"][0]["rows"][0]["name"] = EVIL
    tags = Tags(page(told))
    assert "script" not in tags.names
    assert page(told).count("&lt;script&gt;") >= 10
    assert not any(name.startswith("on") for _, attrs in tags.opened for name in attrs)


def test_images_are_inside_and_small(tmp_path) -> None:
    Image.effect_noise((900, 1800), 90).save(tmp_path / "large.png")
    images = [str(tmp_path / "large.png"), str(tmp_path / "gone.png"), "third.png"]
    text = page(found(item(images=images)))
    shown = [attrs for tag, attrs in Tags(text).opened if tag == "img"]
    assert [(one["width"], one["height"]) for one in shown] == [("160", "320")]
    assert shown[0]["src"].startswith("data:image/jpeg;base64,")
    assert "gone.png&#39; does not exist" in text
    assert "and 1 more images" in text
    assert len(text) < 100_000


def test_there_is_a_most_to_everything(tmp_path, monkeypatch) -> None:
    many = [item(question="long " * 5000) for _ in range(MOST_CARDS + 3)]
    text = page(found(*many, item("changed")))
    assert text.count("<article>") == MOST_CARDS
    assert "3 more in the JSON" in text
    assert "1 more with another answer" in text
    assert len(text) < MOST_CARDS * (MOST_TEXT + 1000) + 20_000
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    monkeypatch.setattr(compare_page, "MOST_BYTES", 1)
    assert "<img" not in page(found(item(images=[str(tmp_path / "small.png")])))


def test_the_file_loads_nothing(tmp_path) -> None:
    write_comparison(found(item()), tmp_path)
    text = (tmp_path / "compare.html").read_text()
    assert "default-src 'none'" in text
    addresses = [
        value
        for _, attrs in Tags(text).opened
        for name, value in attrs.items()
        if name in ("src", "href") and not value.startswith("data:")
    ]
    assert not addresses


def test_doctests() -> None:
    assert doctest.testmod(compare_page).failed == 0
