"""Files that are wrong in every way we could think of: each is right, or one clear sentence."""

import base64
import io
import json
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from varifocal.data.example import Example
from varifocal.data.formats.base import ParseOptions
from varifocal.data.formats.registry import FORMATS
from varifocal.data.readers.base import Record
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection
from varifocal.recipe.prompt_formats import PROMPT_FORMATS


def pil_image(mode="RGB", kind="PNG", **saved):
    buffer = io.BytesIO()
    color = {"1": 1, "P": 3, "I;16": 40_000, "F": 0.5, "LA": (9, 9)}.get(mode)
    Pillow.new(mode, (6, 4), color or (9,) * len(Pillow.new(mode, (1, 1)).getbands())).save(
        buffer, kind, **saved
    )
    return buffer.getvalue()


def animated():
    buffer = io.BytesIO()
    frames = [Pillow.new("P", (6, 4), n) for n in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def rotated():
    exif = Pillow.Exif()
    exif[0x0112] = 6  # lies on its side
    return pil_image(kind="JPEG", exif=exif)


def png(width, height):
    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def said(*turns):
    return [{"from": speaker, "value": text} for speaker, text in turns]


def told(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def llava(**changes):
    turns = said(("human", "<image>\nWhat?"), ("gpt", "red"))
    return {"id": "1", "image": "p.png", "conversations": turns, **changes}


def talk(*turns, **more):
    return {"conversations": said(*turns), **more}


def data_uri(content=None, head="data:image/png;base64,"):
    return head + base64.b64encode(pil_image() if content is None else content).decode()


def shown(url):
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": told(("user", parts), ("assistant", "red"))}


Q = {"question": "Why?", "answer": "So."}
PAIR = (("human", "a"), ("gpt", "b"))

# A name -> the content of a file (bytes as they are, text as UTF-8, else JSON), what is asked,
# and what is said of it.
BAD = {
    "an empty file": ("a.jsonl", b"", {}, "has no row"),
    "blank lines alone": ("a.jsonl", "\n \n\t\n", {}, "has no row"),
    "an empty list": ("a.json", "[ ]", {}, "has no row"),
    "an empty csv": ("a.csv", b"", {}, "has no row"),
    "zero bytes": ("a.jsonl", b"\0" * 64, {}, "line 1 is not JSON"),
    "zero bytes called json": ("a.json", b"\0" * 64, {}, "is not JSON"),
    "half a list": ("a.json", '[{"question": "a", "answer": "b"}, {"que', {}, "row 1 is not JSON"),
    "a bracket too many": ("a.json", '[{"a": 1}]]', {}, "something follows"),
    "two lists": ("a.json", '[{"a": 1}] [{"a": 1}]', {}, "something follows"),
    "a comma at the end": ("a.json", json.dumps([Q])[:-1] + ",]", {}, "row 1 is not JSON"),
    "no comma between": ("a.json", "[{} {}]", {}, "row 0 is not JSON"),
    "a bracket of another kind": ("a.json", '[{"a": 1]]', {}, "row 0 is not JSON"),
    "an open quotation mark": ("a.json", '[{"a": "b}, {"c": 1}]', {}, "row 0 is not JSON"),
    "an object": ("a.json", '{"data": [1]}', {}, "holds an object, a list"),
    "a number": ("a.json", "7", {}, "is not JSON"),
    "a list of numbers": ("a.json", "[1, 2]", {}, "row 0 holds a number"),
    "a list of nulls": ("a.json", "[null]", {}, "row 0 holds a null"),
    "a text a line": ("a.jsonl", '"a"\n', {}, "line 1 holds a text"),
    "deep brackets": ("a.jsonl", "[" * 100_000, {}, "line 1 is not JSON"),
    "deep brackets in a list": ("a.json", "[" * 100_000, {}, "is not JSON"),
    "not a number as JSON has it": ("a.jsonl", '{"question": "a", "answer": NaN}', {}, None),
    "python's quotation marks": ("a.jsonl", "{'a': 1}", {}, "line 1 is not JSON"),
    "utf-16": ("a.jsonl", json.dumps(Q).encode("utf-16"), {}, "is not UTF-8: .* UTF-16"),
    "latin-1": (
        "a.jsonl",
        '{"question": "é", "answer": "b"}'.encode("latin-1"),
        {},
        "line 1 is not",
    ),
    "mixed encodings": (
        "a.jsonl",
        json.dumps(Q).encode() + b'\n{"question": "\xe9", "answer": "b"}\n',
        {},
        "line 2 is not UTF-8",
    ),
    "latin-1 in a list": (
        "a.json",
        '[{"question": "é", "answer": "b"}]'.encode("latin-1"),
        {},
        "row 0 is not",
    ),
    "a byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + json.dumps(Q).encode(), {}, None),
    "a byte order mark in csv": ("a.csv", b"\xef\xbb\xbfquestion,answer\na,b\n", {}, None),
    "a byte order mark in json": ("a.json", b"\xef\xbb\xbf" + json.dumps([Q]).encode(), {}, None),
    "windows' line ends": ("a.jsonl", json.dumps(Q) + "\r\n" + json.dumps(Q) + "\r\n", {}, None),
    "half a character": ("a.jsonl", r'{"question": "\ud83d", "answer": "b"}', {}, "half a char"),
    "a row too narrow": ("a.csv", "question,answer\na\n", {}, "line 2 has not .* 2 columns"),
    "a row too wide": ("a.csv", "question,answer\na,b,c\n", {}, "line 2 has not .* 2 columns"),
    "an open quotation mark in csv": ("a.csv", 'question,answer\n"a,b\n', {}, "line 2 is not CSV"),
    "text after a quotation": ("a.csv", 'question,answer\n"a"b,c\n', {}, "line 2 is not CSV"),
    "a column twice": ("a.csv", "question,question\na,b\n", {}, "column 'question' twice"),
    "no such ending": ("a.xlsx", b"PK", {}, "a file's name ends with"),
    "unknown columns": ("a.jsonl", [{"frage": "a", "antwort": "b"}], {}, "no known format"),
    "a mapped column that is not there": (
        "a.jsonl",
        [{"frage": "a", "answer": "b"}],
        {"columns": {"question": "fragen"}},
        "no column 'fragen' .*mean 'frage'",
    ),
    "another format than named": ("a.jsonl", [Q], {"format": "llava"}, "neither 'conversations'"),
    "no such split": ("a.jsonl", [{**Q, "split": "train"}], {"split": "val"}, "no record in split"),
    "no column split": ("a.jsonl", [Q], {"split": "val"}, "line 1 has no split"),
    "the same id twice": ("a.jsonl", [{**Q, "id": "1"}, {**Q, "id": "1"}], {}, None),
    "no answer": ("a.jsonl", [{"question": "a", "answer": " "}], {}, "line 1 has no answer"),
    "no question": ("a.jsonl", [{"question": None, "answer": "b"}], {}, "line 1 has no question"),
    "no instruction": ("a.jsonl", [{"instruction": "", "output": "b"}], {}, "'instruction' is mis"),
    "no output": ("a.jsonl", [{"instruction": "a", "output": ""}], {}, "turn 2 is empty"),
    "an output that is null": (
        "a.jsonl",
        [{"instruction": "a", "output": None}],
        {},
        "turn 2 is empty",
    ),
    "an output in pieces": ("a.jsonl", [{"instruction": "a", "output": ["b"]}], {}, "'output' mus"),
    "a history of threes": (
        "a.jsonl",
        [{"instruction": "a", "output": "b", "history": [["a", "b", "c"]]}],
        {},
        "no pair of texts",
    ),
    "no turns": ("a.jsonl", [llava(), llava(conversations=[])], {}, "line 2.* list of turns"),
    "a turn that is a text": ("a.jsonl", [llava(), llava(conversations=["a"])], {}, "line 2: tu"),
    "an empty answer": ("a.jsonl", [talk(("human", "a"), ("gpt", " "))], {}, "turn 2 is empty"),
    "the answer first": ("a.jsonl", [talk(("gpt", "b"), ("human", "a"))], {}, "the user first"),
    "two answers": ("a.jsonl", [talk(*PAIR, ("gpt", "c"))], {}, "must take turns"),
    "a system in the middle": ("a.jsonl", [talk(*PAIR, ("system", "c"))], {}, "must take turns"),
    "a speaker nobody knows": ("a.jsonl", [talk(("humna", "a"))], {}, "'humna' .*mean 'human'"),
    "a tool's turn": ("a.jsonl", [{"messages": told(("tool", "a"))}], {}, "speaker 'tool'"),
    "no speaker": (
        "a.jsonl",
        [talk(*PAIR), {"conversations": [{"value": "a"}]}],
        {},
        "speaker .* is None",
    ),
    "a value of numbers": ("a.jsonl", [talk(("human", 7))], {}, "a turn says 7"),
    "a video": ("a.jsonl", [talk(*PAIR, video="a.mp4")], {}, "line 1 has 'video'"),
    "more images than placeholders": (
        "a.jsonl",
        [llava(image=["p.png", "p.png"])],
        {},
        "1 placeholders <image>, but 2 images",
    ),
    "more placeholders than images": (
        "a.jsonl",
        [talk(("human", "<image><image>"), ("gpt", "b"), image="p.png")],
        {},
        "2 placeholders <image>, but 1 images",
    ),
    "an image without a placeholder": ("a.jsonl", [talk(*PAIR, image="p.png")], {}, "0 placehold"),
    "an image in the answer": (
        "a.jsonl",
        [talk(("human", "a"), ("gpt", "<image>"), image="p.png")],
        {},
        "turn 2 is empty|image in a turn of the assistant",
    ),
    "no task's name": ("a.jsonl", [llava()], {"format": "vision_flan"}, "no 'task_name'"),
    "an unknown part": (
        "a.jsonl",
        [{"messages": told(("user", [{"type": "input_audio"}]), ("assistant", "b"))}],
        {},
        "is no part that can be read",
    ),
    "no caption": ("a.jsonl", [{"file_name": "p.png", "text": ""}], {}, "line 1: its caption"),
    "no captions": ("a.jsonl", [{"image": "p.png", "captions": []}], {}, "line 1: its caption"),
    "annotations without images": (
        "a.json",
        {"images": [], "annotations": [{"image_id": 1, "caption": "a"}]},
        {},
        "annotation 0: no image has the id 1",
    ),
    "choices that leave the answer out": (
        "a.jsonl",
        [{**Q, "choices": ["a", "b"]}],
        {},
        "none of the choices",
    ),
    "a key twice": (
        "a.jsonl",
        '{"question": "a", "answer": "b", "answer": "c"}',
        {},
        "line 1 .*key 'answer' stands twice",
    ),
    "a key twice with one value": (
        "a.jsonl",
        '{"question": "a", "answer": "b", "answer": "b"}',
        {},
        None,
    ),
    "one choice": ("a.jsonl", [{**Q, "choices": ["So."]}], {}, "2 to 26 choices"),
    "an image on the web": ("a.jsonl", [llava(image="http://a.org/b.png")], {}, "is a URL"),
    "a part on the web": ("a.jsonl", [shown("https://a.org/b.png")], {}, "is a URL"),
    "an image that is not there": ("a.jsonl", [llava(image="q.png")], {}, "no image '.*q.png'"),
    "an image that is a folder": ("a.jsonl", [llava(image="folder.png")], {}, "no image"),
    "an image outside": ("a.jsonl", [llava(image="../p.png")], {}, "leads out of the folder"),
    "an image at the root": ("a.jsonl", [llava(image="/etc/hostname")], {}, "leads out of the"),
    "an image's name of zeros": ("a.jsonl", [llava(image="a\0b")], {}, "no image"),
    "an image's name that is a number": ("a.jsonl", [llava(image=7)], {}, "path is 7"),
    "image and images that say the same": ("a.jsonl", [llava(images=["p.png"])], {}, None),
    "both image and images": (
        "a.jsonl",
        [llava(images=["p.png", "p.png"])],
        {},
        "both 'image' and 'images'",
    ),
    "a data uri": ("a.jsonl", [shown(data_uri())], {}, None),
    "a data uri that is no base64": (
        "a.jsonl",
        [shown("data:image/png;base64,*")],
        {},
        "not base64",
    ),
    "a data uri without base64": ("a.jsonl", [shown("data:image/png,abc")], {}, "no data: URI"),
    "an empty data uri": ("a.jsonl", [shown("data:image/png;base64,")], {}, "holds no image"),
    "a data uri that is no image": ("a.jsonl", [shown(data_uri(b"abc"))], {}, "is damaged"),
}


def write(folder, name, content):
    (folder / "folder.png").mkdir()
    (folder / "p.png").write_bytes(pil_image())
    if isinstance(content, str):
        content = content.encode()
    if not isinstance(content, bytes):
        rows = name.endswith(".jsonl")
        content = ("\n".join(map(json.dumps, content)) if rows else json.dumps(content)).encode()
    (folder / name).write_bytes(content)
    return folder / name


def read(section):
    """Read every record and decode its images; return them, or the first sentence."""
    examples = []
    try:
        for found in open_source(section):
            if isinstance(found, DataError):
                raise found
            examples.append(found)
            for image in found.images:
                image.open()
    except DataError as error:
        return str(error)
    return examples


def in_both_ways():
    """Yield each bad file read at random and as a stream, but for what only a count tells."""
    for name, (_, _, _, expected) in BAD.items():
        yield name, False
        if expected not in ("has no row", "no record in split"):
            yield name, True


@pytest.mark.parametrize(("name", "streaming"), list(in_both_ways()))
def test_a_bad_file_is_right_or_a_sentence(tmp_path, name, streaming):
    file, content, asked, expected = BAD[name]
    folder = tmp_path / "data"
    folder.mkdir()
    path = write(folder, file, content)
    found = read(FileSection(path=str(path), streaming=streaming, **asked))
    if expected is None:
        assert isinstance(found, list)
        assert found
    else:
        assert isinstance(found, str), f"read as {found}"
        assert re.search(expected, found), found
        assert "\n" not in found
        assert str(path) in found or "image of " in found


IMAGES = {
    "gray": (pil_image("L"), (6, 4)),
    "black and white": (pil_image("1"), (6, 4)),
    "palette": (pil_image("P"), (6, 4)),
    "palette with transparency": (pil_image("P", transparency=0), (6, 4)),
    "gray with alpha": (pil_image("LA"), (6, 4)),
    "alpha": (pil_image("RGBA"), (6, 4)),
    "16 bits": (pil_image("I;16"), (6, 4)),
    "cmyk": (pil_image("CMYK", "JPEG"), (6, 4)),
    "animated": (animated(), (6, 4)),
    "on its side": (rotated(), (4, 6)),
    "zero bytes": (b"", "is empty"),
    "zeros": (b"\0" * 64, "is damaged or none of"),
    "a text": (b"not an image", "is damaged or none of"),
    "half an image": (pil_image()[:50], "cannot be decoded"),
    "a bomb": (png(100_000, 100_000), "is too large"),
    "a long bomb": (png(2**31 - 1, 1), "is too large"),
    "no pixels": (png(0, 0), "is damaged|cannot be decoded"),
    "an svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is damaged or none of"),
    "floating point": (pil_image("F", "TIFF"), "cannot be decoded"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is damaged or none of"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_right_or_a_sentence(tmp_path, name):
    content, expected = IMAGES[name]
    path = write(tmp_path, "a.jsonl", [llava()])
    (tmp_path / "p.png").write_bytes(content)
    found = read(FileSection(path=str(path)))
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert re.search(expected, found), found
        assert str(tmp_path / "p.png") in found
    else:
        decoded = found[0].images[0].open()
        assert (decoded.mode, decoded.size) == ("RGB", expected)
        assert np.asarray(decoded).dtype == np.uint8


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
words = json_values | st.sampled_from(
    ["a", "<image>", "<image>\nWhat?", "p.png", "../p.png", "http://a.org/b.png", data_uri(), ""]
)
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image", "image_url", "x"])},
        optional={
            "text": words,
            "image": words,
            "image_url": words | st.fixed_dictionaries({}, optional={"url": words}),
        },
    )
    | words,
    max_size=3,
)
speakers = st.sampled_from(["human", "gpt", "system", "user", "assistant", "tool", ""]) | words
turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "from": speakers,
            "role": speakers,
            "value": words | parts,
            "content": words | parts,
            "tool_calls": words,
        },
    )
    | words,
    max_size=4,
)
rows = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            (
                *("id", "task", "task_name", "question", "answer", "context", "hint", "lecture"),
                *("solution", "caption", "captions", "text", "file_name", "instruction", "input"),
                *("output", "system", "split", "skill", "video"),
            ),
            words,
        ),
        "choices": words | st.lists(st.sampled_from(["a", "b", ""]), max_size=3),
        "image": words | st.lists(words, max_size=2),
        "images": words | st.lists(words, max_size=2),
        "history": words | st.lists(st.lists(words, max_size=2), max_size=2),
        "conversations": turns | words | st.fixed_dictionaries({"from": turns, "value": turns}),
        "messages": turns | words,
    },
)


@pytest.fixture(scope="module")
def pil_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "p.png").write_bytes(pil_image())
    return folder


quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(
    row=rows,
    columns=st.dictionaries(
        st.sampled_from(["question", "answer", "image", "choices"]),
        st.sampled_from(["text", "{text} {input}", "{text", "a|b", "caption"]),
    ),
    prompt_format=st.sampled_from(PROMPT_FORMATS),
    answer_as=st.sampled_from(["text", "letter"]),
    prompt_text=st.sampled_from(["plain", "published"]),
)
def test_any_row_gives_an_example_or_a_sentence_in_every_format(
    pil_images, row, columns, prompt_format, answer_as, prompt_text
):
    record = Record("/data/a.jsonl", "line 3", row)
    for name, one in FORMATS.items():
        asked = ParseOptions("/data/a.jsonl", name, pil_images, columns, answer_as, prompt_format)
        asked = replace(asked, prompt_text=prompt_text, use_captions=prompt_text == "published")
        one.detect(record)
        if one.wants is not None and not one.wants(row, asked):
            continue
        found = outcome(lambda one=one, asked=asked: one.parse(record, asked))
        if isinstance(found, str):
            assert found.startswith(("/data/a.jsonl: ", "'/data/a.jsonl'"))
        else:
            assert isinstance(found, Example)
            assert found.source == "/data/a.jsonl"
            assert found.messages[-1].text.strip() or found.messages[-1].role == "user"


def outcome(parse):
    """Return the example, or the sentence that says why there is none."""
    try:
        return parse()
    except DataError as error:
        return str(error)


@quick
@given(
    content=st.binary(max_size=40)
    | st.lists(
        st.sampled_from(
            [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\n", b"a", b"\\", b"1", b"\xff"]
        ),
        max_size=14,
    ).map(b"".join),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv"]),
    streaming=st.booleans(),
)
def test_any_bytes_give_records_or_a_sentence(tmp_path, content, name, streaming):
    (tmp_path / name).write_bytes(content)
    section = FileSection(path=str(tmp_path / name), format="table", streaming=streaming)
    found = outcome(lambda: list(open_source(section)))
    if isinstance(found, str):
        assert name in found
    else:
        assert all(isinstance(one, (DataError, Example)) for one in found)
        assert all(name in str(one) for one in found if isinstance(one, DataError))
