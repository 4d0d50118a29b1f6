"""Tar shards: each sample speaks for itself, whichever samples come first."""

import gzip
import io
import json
import tarfile

import datasets
import pytest
from PIL import Image as Pillow

from varifocal import cache
from varifocal.data.readers import tar
from varifocal.data.source import Source, open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection, HubSection

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def image(color="red", form="PNG"):
    file = io.BytesIO()
    Pillow.new("RGB", (6, 4), color).save(file, form)
    return file.getvalue()


def talk(answer="red", num_images=1, **more):
    asked = {"from": "human", "value": "<image>" * num_images + "What?"}
    return {"conversations": [asked, {"from": "gpt", "value": answer}], **more}


def write_tar(path, members, links=()):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif name in links:
                member.type, member.linkname = tarfile.LNKTYPE, content
            else:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isfile() else None)
    return path


def both(path, **asked):
    """Open a place for reading in any order, and as a stream."""
    section = FileSection(path=str(path), **asked)
    return open_source(section), open_source(section.model_copy(update={"streaming": True}))


def colours(example):
    return [image.open().convert("RGB").getpixel((0, 0)) for image in example.images]


def test_images_of_later_samples_and_shards_are_kept(tmp_path):
    words = [(f"{n}.json", talk(str(n), 0)) for n in range(9)]
    seen = [part for n in range(9, 12) for part in ((f"{n}.png", image()), (f"{n}.json", talk()))]
    write_tar(tmp_path / "s-0.tar", words)
    write_tar(tmp_path / "s-1.tar", [("8.json", talk("8", 0)), *seen])
    for source in both(tmp_path / "s-*.tar"):
        assert [len(one.images) for one in source] == [0] * 10 + [1] * 3
        assert [one.messages[1].text for one in source][9:] == ["8", "red", "red", "red"]


def test_samples_are_read_in_any_order(tmp_path):
    for shard in range(2):
        members = [(f"{n}.json", talk(f"{shard} {n}", 0)) for n in range(3)]
        write_tar(tmp_path / f"s-{shard}.tar", members)
    source, stream = both(tmp_path / "s-*.tar")
    assert isinstance(source, Source)
    asked = [source.example(n).messages[1].text for n in (4, 0, 5, 2)]
    assert asked == ["1 1", "0 0", "1 2", "0 2"]
    assert [one.id for one in source] == [one.id for one in stream] == ["0", "1", "2"] * 2
    assert source.scan().modalities.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        ("webp", "WEBP"),
        ("jpeg", "JPEG"),
        ("jpg", "JPEG"),
        ("bmp", "BMP"),
        ("gif", "GIF"),
        ("PNG", "PNG"),
        ("tiff", "TIFF"),
        ("ppm", "PPM"),
        ("input.JPG", "JPEG"),
    ],
)
def test_every_ending_of_an_image_is_one(tmp_path, ending, form):
    members = [(f"7.{ending}", image("white", form)), ("7.json", talk("white"))]
    for source in both(write_tar(tmp_path / "a.tar", members)):
        (example,) = source
        assert colours(example) == [(255, 255, 255)]


def test_samples_need_not_have_the_same_keys_or_types(tmp_path):
    rows = [{"question": "How many?", "answer": n} for n in range(6)]
    rows.append({"question": "Who?", "answer": "Ann", "task": "names", "context": "Ann came."})
    members = [(f"{n}.json", row) for n, row in enumerate(rows)]
    for source in both(write_tar(tmp_path / "a.tar", members)):
        examples = list(source)
        assert [one.messages[1].text for one in examples] == [*"012345", "Ann"]
        assert (examples[6].task, examples[6].question.context) == ("names", "Ann came.")


def test_two_images_then_one(tmp_path):
    members = []
    for n, colors in enumerate([("red", "blue"), ("blue", "red"), ("red",)]):
        members += [(f"{n}.{at}.png", image(color)) for at, color in enumerate(colors)]
        members.append((f"{n}.json", talk(num_images=len(colors))))
    for source in both(write_tar(tmp_path / "a.tar", members)):
        assert [colours(one) for one in source] == [[RED, BLUE], [BLUE, RED], [RED]]


@pytest.mark.parametrize(
    ("names", "listed", "expected"),
    [
        (("img10.png", "img2.png", "img1.png"), None, [GREEN, BLUE, RED]),
        (("b.png", "a.png", "c.png"), ["c.png", "b.png", "a.png"], [GREEN, RED, BLUE]),
        (("0.png", "1.png", "2.png"), ["x/7.2.png", "x/7.0.png", "x/7.1.png"], [GREEN, RED, BLUE]),
        (("0.png", "1.png", "2.png"), ["p.png", "q.png", "r.png"], [RED, BLUE, GREEN]),
    ],
)
def test_the_order_of_images_is_that_of_their_numbers_or_of_the_list(
    tmp_path, names, listed, expected
):
    colors = ("red", "blue", "green")
    members = [(f"7.{name}", image(color)) for name, color in zip(names, colors, strict=True)]
    more = {} if listed is None else {"images": listed}
    members.append(("7.json", talk(num_images=3, **more)))
    for source in both(write_tar(tmp_path / "a.tar", members)):
        (example,) = source
        assert colours(example) == expected


def test_hidden_files_and_folders_are_no_samples(tmp_path):
    members = [
        ("./", None),
        ("./._7.png", b"resource fork"),
        ("./7.png", image()),
        ("./._7.json", b"resource fork"),
        ("./7.json", talk()),
        ("./sub", None),
        ("./sub/7.json", talk("other", 0)),
        ("__MACOSX/._7.png", b"resource fork"),
        (".DS_Store", b"x"),
        ("README", b"x"),
    ]
    for source in both(write_tar(tmp_path / "a.tar", members)):
        assert [one.id for one in source] == ["7", "sub/7"]
        assert [len(one.images) for one in source] == [1, 0]


def test_texts_are_columns_and_classes_are_integers(tmp_path):
    members = [
        ("7.jpg", image("white", "JPEG")),
        ("7.question.txt", "\ufeffWhich?\n".encode()),
        ("7.cls", b"1\n"),
    ]
    columns = {"answer": "cls", "choices": "black|white"}
    for source in both(write_tar(tmp_path / "a.tar", members), columns=columns):
        (example,) = source
        assert example.messages[0].text.startswith("Question: Which?\n")
        assert (example.answer_index, len(example.images)) == (1, 1)
    captioned = [("7.jpg", image("white", "JPEG")), ("7.txt", b"A white field.")]
    for source in both(write_tar(tmp_path / "b.tar", captioned)):
        (example,) = source
        assert example.messages[1].text == "A white field."


BROKEN = {
    "a video": ([("7.mp4", b"x"), ("7.json", talk(num_images=0))], "holds '7?mp4'|holds 'mp4'"),
    "too few images": (
        [("7.0.png", b"x"), ("7.json", talk(images=["0.png", "1.png"], num_images=2))],
        "its JSON names 2 images, but the sample holds 1: 0.png",
    ),
    "no image": ([("7.json", talk())], "1 placeholders <image>, but 0 images"),
    "two rows": ([("7.v1.json", talk("a")), ("7.v2.json", talk("b"))], "two values for 'conv"),
    "json cut short": ([("7.json", b'{"conversations": [')], "is not JSON"),
    "a list": ([("7.json", b"[1]")], "holds a list, an object"),
    "not UTF-8": ([("7.json", b"\xff\xfe{}")], "is not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_is_one_sentence_and_the_next_are_read(tmp_path, name):
    members, said = BROKEN[name]
    path = write_tar(
        tmp_path / "a.tar", [("1.json", talk("a", 0)), *members, ("9.json", talk("b", 0))]
    )
    for source in both(path, format="llava"):
        first, second, third = source
        assert (first.messages[1].text, third.messages[1].text) == ("a", "b")
        assert isinstance(second, DataError)
        assert str(second).startswith(f"{path}: sample 7")
        with pytest.raises(DataError, match=said):
            raise second


def test_a_link_is_told(tmp_path):
    members = [("1.png", image()), ("1.json", talk()), ("2.png", "1.png"), ("2.json", talk())]
    for source in both(write_tar(tmp_path / "a.tar", members, links=("2.png",))):
        first, second = source
        assert colours(first) == [RED]
        assert "sample 2: '2.png' is a link" in str(second)


def test_a_sample_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MAX_SAMPLE_BYTES", 1000)
    monkeypatch.setattr(tar, "_MOST_READ", 3000)
    members = [("1.png", b"0" * 5000), ("1.json", talk()), ("2.json", talk("b", 0))]
    for source in both(write_tar(tmp_path / "a.tar", members), format="llava"):
        first, second = source
        assert "bytes; at most" in str(first)
        assert second.messages[1].text == "b"


@pytest.mark.parametrize("on", [False, True], ids=["in any order", "streaming"])
def test_files_that_do_not_lie_next_to_one_another_are_told(tmp_path, on):
    members = [("1.json", talk()), ("2.json", talk("b", 0)), ("1.png", image())]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"sample '1' do not lie next .*'1\.png' is apart.*--sort"):
        list(open_source(FileSection(path=str(path), format="llava", streaming=on)))


def shard(tmp_path):
    return write_tar(tmp_path / "a.tar", [(f"{n}.json", talk(str(n), 0)) for n in range(40)])


@pytest.mark.parametrize("on", [False, True], ids=["in any order", "streaming"])
@pytest.mark.parametrize("damage", ["cut short", "a header", "two archives", "empty", "no sample"])
def test_what_cannot_be_read_to_its_end_is_refused(tmp_path, on, damage):
    path = shard(tmp_path)
    content = path.read_bytes()
    second = 1024  # of two blocks, the header and the content
    changed = {
        "cut short": content[: second * 9 + 700],
        "a header": content[: second * 9] + b"garbage" + content[second * 9 + 7 :],
        "two archives": content + content,
        "empty": b"",
        "no sample": b"\0" * 10240,
    }
    path.write_bytes(changed[damage])
    with pytest.raises(DataError, match=r"a\.tar"):
        list(open_source(FileSection(path=str(path), streaming=on)))


def test_a_compressed_shard_is_read_in_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    plain = shard(tmp_path)
    for name in ("b.tar.gz", "c.tgz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(plain.read_bytes()))
        source, stream = both(path)
        expected = [str(n) for n in range(40)]
        assert [one.messages[1].text for one in source] == expected
        assert [one.messages[1].text for one in stream] == expected
        cache.clear_cache("unpacked")
        assert source.example(7).messages[1].text == "7"
    path.write_bytes(path.read_bytes()[:-300])
    for on in (False, True):
        with pytest.raises(DataError, match=r"c\.tgz"):
            list(open_source(FileSection(path=str(path), streaming=on)))


def test_a_stream_unpacks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "b.tar.gz"
    path.write_bytes(gzip.compress(shard(tmp_path).read_bytes()))
    assert len(list(open_source(FileSection(path=str(path), streaming=True)))) == 40
    assert not (tmp_path / "cache" / "unpacked").exists()


def test_a_stream_holds_one_sample_at_a_time(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.bin", b"\0" * 10_000) for n in range(3)])
    with path.open("rb") as stream:
        held = []
        for sample in tar._samples(stream, path):
            held.append(sample)
            assert sum(len(one.members) for one in held) == 1
            sample.members.clear()
    assert [sample.key for sample in held] == ["0", "1", "2"]


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    path = shard(tmp_path)
    first = open_source(FileSection(path=str(path))).fingerprint
    write_tar(path, [("0.json", talk("else", 0))])
    assert open_source(FileSection(path=str(path))).fingerprint != first


def test_shards_of_the_hub_are_refused_with_the_way_to_read_them(tmp_path):
    (tmp_path / "hub").mkdir()
    write_tar(tmp_path / "hub" / "train-0.tar", [("0.json", talk("a", 0))])
    for on in (False, True):
        section = HubSection(hub=str(tmp_path / "hub"), split="train", streaming=on)
        with pytest.raises(DataError, match=r"tar shards.*hf download.*path: FOLDER/\*\.tar"):
            open_source(section)


def test_a_saved_data_set_of_shards_keeps_what_was_saved(tmp_path):
    rows = [
        {"__key__": "1", "0.png": image(), "1.png": image("blue"), "json": talk(num_images=2)},
        {"__key__": "2", "0.png": image(), "1.png": None, "json": talk()},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    first, second = open_source(FileSection(path=str(tmp_path / "saved")))
    assert [colours(one) for one in (first, second)] == [[RED, BLUE], [RED]]
