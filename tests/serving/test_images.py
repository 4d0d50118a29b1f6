"""An image's size is known before a pixel is decoded, and few are decoded at a time."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.serving.request_body import PixelBudget, read_image
from varifocal.serving.settings import ServeSettings


def uri(width: int, height: int, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    PIL.Image.new("L", (width, height)).save(buffer, form)
    return "data:;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_an_image_too_large_is_not_decoded(monkeypatch, form) -> None:
    def decoded(self):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image, "open", decoded)
    settings = ServeSettings(max_image_mpixels=0.01)
    with pytest.raises(DataError, match=r"101 x 100 pixels, and this server takes 0\.01 million"):
        read_image(uri(101, 100, form), settings, PixelBudget(10_000))
    with pytest.raises(AssertionError):
        read_image(uri(100, 100, form), settings, PixelBudget(10_000))


def test_pixels_decoded_at_a_time_have_a_bound(monkeypatch) -> None:
    now, most, lock = 0, 0, threading.Lock()
    plain = Image.open

    def counting(self):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            threading.Event().wait(0.01)
            return plain(self)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(Image, "open", counting)
    budget = PixelBudget(2500)
    url, large = uri(32, 32), uri(100, 100)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: read_image(one, ServeSettings(), budget), [url] * 16))
        assert most == 2
        assert len(found) == 16
        list(pool.map(lambda one: read_image(one, ServeSettings(), budget), [large] * 3))
    assert most == 2  # one that is larger than all of it is decoded alone


def test_a_damaged_image_gives_its_pixels_back() -> None:
    budget = PixelBudget(100 * 100)
    url = uri(100, 100, "BMP")
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be decoded"):
            read_image(url[: len(url) // 2 // 4 * 4 + 1], ServeSettings(), budget)
    assert read_image(url, ServeSettings(), budget).open().size == (100, 100)
