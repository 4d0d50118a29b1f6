import io
import json

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest

from varifocal.data.example import MAX_PIXELS, Example, Image, Message
from varifocal.data.loading import check_images, load_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection


def saved(pil_image, kind, **options):
    file = io.BytesIO()
    pil_image.save(file, kind, **options)
    return file.getvalue()


def opened(pil_image, kind="PNG", **options):
    return Image(data=saved(pil_image, kind, **options)).open()


def test_an_image_from_a_file_is_read_only_when_it_is_opened(tmp_path):
    image = Image(tmp_path / "later.png")
    PIL.Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "later.png")
    pil_image = image.open()
    assert (pil_image.mode, pil_image.size, pil_image.getpixel((0, 0))) == (
        "RGB",
        (3, 2),
        (1, 2, 3),
    )


def test_the_camera_rotation_is_applied():
    upright = PIL.Image.new("RGB", (4, 2), "white")
    upright.putpixel((0, 0), (255, 0, 0))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    pil_image = opened(upright, exif=exif)
    assert pil_image.size == (2, 4)
    assert pil_image.getpixel((1, 0)) == (255, 0, 0)


def test_transparency_is_laid_on_white():
    clear = PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 255))
    pil_image = opened(clear)
    assert [pil_image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("mode", ["P", "LA", "L"])
def test_transparency_of_palettes_and_greys_is_laid_on_white(mode):
    if mode == "LA":
        pil_image = opened(PIL.Image.new("LA", (1, 1), (0, 0)))
    else:
        pil_image = opened(PIL.Image.new(mode, (1, 1), 0), transparency=0)
    assert pil_image.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_greys_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    pil_image = opened(PIL.Image.fromarray(values))
    assert [pil_image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_red_is_red(kind):
    pil_image = opened(PIL.Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK"), kind)
    red, green, blue = pil_image.getpixel((4, 4))
    assert red > 230
    assert max(green, blue) < 40


SAVED_AS = {
    "PNG": ["1", "P", "L", "LA", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "P", "L", "LA", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "LAB"],
    "JPEG": ["1", "L", "RGB", "CMYK", "YCbCr"],
    "GIF": ["1", "P", "L", "RGB", "RGBA"],
    "BMP": ["1", "P", "L", "RGB", "RGBA"],
    "WEBP": ["L", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB", "I;16"],
}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in SAVED_AS.items() for mode in modes]
)
def test_every_format_and_mode_becomes_rgb(kind, mode):
    pil_image = opened(PIL.Image.new(mode, (5, 3)), kind)
    assert (pil_image.mode, pil_image.size) == ("RGB", (5, 3))


def test_half_a_file_is_refused_though_a_library_has_allowed_it(monkeypatch):
    """lmms-eval does where it is imported; then Pillow gives an image that ends in grey."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = saved(PIL.Image.fromarray(noise), "PNG")
    with pytest.raises(DataError, match="cannot be decoded"):
        Image(data=whole[: len(whole) // 2]).open()
    assert PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_half_a_file_is_refused_in_every_format(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = saved(PIL.Image.fromarray(noise), kind)
    with pytest.raises(DataError, match=r"damaged|decoded"):
        Image(data=whole[: len(whole) // 2]).open()


def test_of_an_animation_the_first_frame_is_taken():
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    pil_image = opened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pil_image.getpixel((1, 1)) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_is_turned_as_pillow_turns_it(kind, orientation):
    corners = np.zeros((4, 6, 3), np.uint8)
    corners[:2, :3], corners[:2, 3:], corners[2:, :3] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    whole = saved(PIL.Image.fromarray(corners).resize((48, 32), 0), kind, exif=exif)
    with PIL.Image.open(io.BytesIO(whole)) as pil_image:
        expected = PIL.ImageOps.exif_transpose(pil_image).convert("RGB")
    assert (np.asarray(Image(data=whole).open()) == np.asarray(expected)).all()


DAMAGED_EXIF = [
    b"Exif\0\0garbage!",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
]


@pytest.mark.parametrize("exif", DAMAGED_EXIF)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_sound_pixels_open_in_spite_of_damaged_exif(kind, exif):
    whole = saved(PIL.Image.new("RGB", (6, 4), "white"), kind, exif=exif)
    pil_image = Image(data=whole).open()
    assert (pil_image.size, pil_image.getpixel((1, 1))) == ((6, 4), (255, 255, 255))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_photograph_of_a_hundred_megapixels_is_told_or_skipped(tmp_path, streaming):
    PIL.Image.new("1", (12_000, 9_000)).save(tmp_path / "large.png")
    rows = [
        {"question": "What?", "answer": "a", "image": "large.png"},
        {"question": "Why?", "answer": "b"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FileSection(path=str(tmp_path / "a.jsonl"), streaming=streaming)
    with pytest.raises(DataError, match=r"record 'line 1'.*large\.png' is too large"):
        check_images(load_source(source))
    kept = check_images(load_source(source), on_bad_record="skip")
    assert (len(kept), len(kept.skipped)) == (1, 1)


def test_a_bomb_is_refused_by_its_header(tmp_path, bomb_png):
    (tmp_path / "bomb.png").write_bytes(bomb_png)
    with pytest.raises(DataError, match=r"bomb\.png' is too large"):
        Image(tmp_path / "bomb.png").open()


def test_too_many_pixels_are_refused_though_pillow_would_read_them():
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(DataError, match=f"{side:,} x {side:,} pixels, at most 50,000,000"):
        opened(PIL.Image.new("1", (side, side)))


def corrupt(folder, case):
    path = folder / f"{case}.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = saved(PIL.Image.fromarray(noise), "PNG")
    if case == "directory":
        path.mkdir()
    elif case != "missing":
        content = {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "header": whole[:20],
            "text": b"not an image",
            "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(hi) show\n",
            "flipped": whole[:60] + bytes(255 - byte for byte in whole[60:]),
        }[case]
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", "does not exist"),
        ("directory", "is a directory"),
        ("empty", "is empty"),
        ("truncated", "cannot be decoded"),
        ("header", "cannot be decoded"),
        ("text", "damaged or none of PNG, JPEG"),
        ("script", "damaged or none of PNG, JPEG"),
        ("flipped", "cannot be decoded"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, case, said):
    path = corrupt(tmp_path, case)
    with pytest.raises(DataError, match=said) as caught:
        Image(path).open()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        opened(PIL.Image.new("F", (2, 2)), "TIFF")


def test_the_fingerprint_is_of_the_content(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert Image(tmp_path / "a.png").fingerprint() == Image(data=b"x").fingerprint()
    assert Image(data=b"y").fingerprint() != Image(data=b"x").fingerprint()


@pytest.mark.parametrize("arguments", [{}, {"path": "a.png", "data": b"x"}])
def test_an_image_has_exactly_one_place(arguments):
    with pytest.raises(DataError, match="either a path or data"):
        Image(**arguments)


def turn(role, *content):
    return Message(role, content or ("text",))


@pytest.mark.parametrize(
    "roles",
    [
        [],
        ["system"],
        ["assistant", "user"],
        ["user", "user", "assistant"],
        ["user", "assistant", "assistant"],
        ["user", "system", "assistant"],
        ["system", "system", "user"],
    ],
)
def test_turns_that_cannot_be_are_refused(roles):
    with pytest.raises(DataError, match="take turns"):
        Example(messages=tuple(turn(role) for role in roles), id="7")


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"messages": (turn("robot"),)}, "role 'robot' is none of system, user, assistant"),
        ({"messages": (turn("user", "\ud800"),)}, "half a character"),
        ({"messages": (turn("user"),), "choices": ("a", "b"), "answer_index": 2}, "index is 2"),
        ({"messages": (turn("user"),), "choices": ("a", "b"), "options": ("a",)}, "1 options"),
        (
            {"messages": (turn("user"), turn("assistant", Image(data=b"x")))},
            "an image in a turn of the assistant",
        ),
    ],
)
def test_what_no_model_can_read_is_refused_by_name(example, said):
    with pytest.raises(DataError, match=said) as caught:
        Example(**example, id="7", source="book.json")
    assert str(caught.value).startswith("book.json: record '7': ")


def test_modality_and_images_follow_the_turns():
    one, two = Image(data=b"1"), Image(data=b"2")
    example = Example(messages=(turn("user", one, "a", two), turn("assistant")))
    assert example.images == (one, two)
    assert example.modality == 1
    assert Example(messages=(turn("user"),)).modality == 0
