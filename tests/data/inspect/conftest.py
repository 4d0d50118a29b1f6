"""Small files of records, and an encoder with eyes."""

import json

import pytest
from PIL import Image as Images

from varifocal.cache import cache_root
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import Samples
from varifocal.data.mixture import Part, draw_epoch
from varifocal.data.source import open_source
from varifocal.recipe import DataSection, FileSection

IMAGE_TOKEN = "<|image|>"
PER_IMAGE = 4


@pytest.fixture
def encoder(tokenizers):
    """Make an encoder with eyes; knobs as given."""

    def make(data=DataSection(), eyes=True):  # noqa: B008 - frozen
        seeing = {"image_token": IMAGE_TOKEN, "tokens_per_image": PER_IMAGE} if eyes else {}
        return Encoder(
            tokenizers["smollm2"],
            **seeing,
            max_length=data.max_length,
            overflow=data.overflow,
            train_on=data.train_on,
        )

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    Images.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    Images.new("RGB", (8, 6), "blue").save(tmp_path / "blue.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:30])
    return tmp_path


@pytest.fixture
def section(folder):
    """Write records to files and name them in a data section."""

    def make(train, evaluate=None, *, sources=None, **knobs):
        given = {"train": [train] if sources is None else sources}
        if evaluate is not None:
            given["evaluate"] = [evaluate]
        sides = {}
        for side, files in given.items():
            sections = []
            for number, records in enumerate(files):
                path = folder / f"{side}{number}.jsonl"
                lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
                path.write_text("\n".join(lines) + "\n")
                sections.append(FileSection(path=str(path)))
            sides[side] = tuple(sections)
        return DataSection(**sides, **{"max_length": 400, **knobs})

    return make


@pytest.fixture
def open_samples(encoder):
    """Open a data section's samples as a run does."""

    def open_them(data):
        sources = [open_source(section) for section in data.train]
        parts = [Part(one.name, len(one), epochs=one.section.epochs) for one in sources]
        drawn = draw_epoch(parts, data.mixture, 0)
        return Samples(sources, drawn, encoder(data), cache_root() / "encoded")

    return open_them
