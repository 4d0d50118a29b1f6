"""Images are prepared as the recipe says, in the run, its table of features and its exports."""

import PIL.Image
import pytest
import torch
from transformers import AutoProcessor

from varifocal.assemble import assemble, open_run
from varifocal.data.example import Image
from varifocal.errors import ModelError, RecipeError
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.models.preprocessing import pixel_loader
from varifocal.recipe import ImagePreparationSection, Recipe, load_recipe

SIDE = 28
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = PIL.Image.Resampling.BICUBIC


def cropped(image):
    width, height = image.size
    short = min(width, height)
    size = int(width * SIDE / short), int(height * SIDE / short)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return image.resize(size, BICUBIC).crop((left, top, left + SIDE, top + SIDE))


def padded(image):
    """LLaVA's: the image in the middle of a square of the mean colour."""
    side = max(image.size)
    square = PIL.Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in CLIP[0]))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((SIDE, SIDE), BICUBIC)


def squashed(image):
    return image.resize((SIDE, SIDE), BICUBIC)


def numbers(image, mean, std):
    """Pixels [3, H, W] as the tower reads them, by the formula."""
    bytes_ = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = bytes_.view(SIDE, SIDE, 3).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


LAVIN = {"fit": "squash", "mean": IMAGENET[0], "std": IMAGENET[1]}
PREPARATIONS = [
    (None, cropped, CLIP),
    ("crop", cropped, CLIP),
    ("pad", padded, CLIP),
    ("squash", squashed, CLIP),
    (LAVIN, squashed, IMAGENET),
    ({"mean": IMAGENET[0], "std": IMAGENET[1]}, cropped, IMAGENET),
]


def recipe_of(parts_directory, preparation, tower="clip"):
    model = {
        "language_model": str(parts_directory / "language"),
        "vision_tower": str(parts_directory / tower),
        "connector": {"type": "mlp2x_gelu"},
        "dtype": "float32",
        "image_preparation": preparation,
    }
    return Recipe.model_validate({"model": model, "tuner": {"type": "none"}})


def pixels_of(parts, file):
    load = pixel_loader(parts.processor, torch.float32)
    return load([Image(path=file)])["pixel_values"][0]


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(("preparation", "make", "statistics"), PREPARATIONS)
def test_pixels_are_those_of_the_formula(
    parts_directory, image, preparation, make, statistics, upright
):
    seen = PIL.Image.open(image)
    if upright:
        seen = seen.transpose(PIL.Image.Transpose.ROTATE_90)
        seen.save(image)
    found = pixels_of(assemble(recipe_of(parts_directory, preparation)), image)
    expected = numbers(make(seen), *statistics)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_another_towers_size_and_numbers_stay(parts_directory, image):
    """SigLIP's own squashes, and takes one half as mean and deviation."""
    parts = assemble(recipe_of(parts_directory, "crop", tower="siglip"))
    half = (0.5, 0.5, 0.5)
    expected = numbers(cropped(PIL.Image.open(image)), half, half)
    torch.testing.assert_close(pixels_of(parts, image), expected, rtol=0, atol=1e-5)


def test_features_are_stored_apart_for_each_preparation(parts_directory):
    folders = [
        assemble(recipe_of(parts_directory, preparation)).features._table_path.parent
        for preparation, _, _ in PREPARATIONS
    ]
    assert len(set(folders[1:])) == len(folders) - 1
    again = assemble(recipe_of(parts_directory, "pad")).features._table_path.parent
    assert again == folders[2]


@pytest.mark.parametrize("form", ["llava", "model"])
@pytest.mark.parametrize(("preparation", "make", "statistics"), PREPARATIONS[2:5:2])
def test_a_run_and_its_exports_prepare_alike(
    make_run, parts_directory, tmp_path, image, form, preparation, make, statistics
):
    model = recipe_of(parts_directory, preparation).model.model_dump(mode="json")
    run = make_run({"type": "none"}, image_preparation=model["image_preparation"])
    expected = numbers(make(PIL.Image.open(image)), *statistics)
    torch.testing.assert_close(pixels_of(open_run(run.root)[1], image), expected, rtol=0, atol=1e-5)
    (done,) = export_run(Order(run, form, num_prompts=2), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(done.directory)
    found = processor.image_processor(images=[PIL.Image.open(image)], return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"][0], expected, rtol=0, atol=1e-5)


def test_what_cannot_be_prepared_is_a_sentence(parts_directory):
    page = {"language_model": str(parts_directory / "language"), "image_preparation": "pad"}
    text = Recipe.model_validate({"model": page, "tuner": {"type": "none"}})
    with pytest.raises(
        ModelError, match=r"^model\.image_preparation: .* belongs to a vision_tower"
    ):
        assemble(text)
    with pytest.raises(RecipeError, match="image_side puts images on squares by itself; give one"):
        load_recipe({"model": page | {"image_side": 448}})
    for wrong, sentence in (
        ("stretch", r"fit: 'stretch' is not allowed; one of 'crop', 'squash' or 'pad'"),
        ({"std": [0, 1, 1]}, r"std: \[0.0, 1.0, 1.0\] are not three numbers of 0.001 to 1"),
        ({"mean": 0.5}, r"image_preparation\.mean"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            load_recipe({"model": page | {"image_preparation": wrong}})


def test_the_page_of_a_run_reads_back(parts_directory):
    section = recipe_of(parts_directory, LAVIN).model.image_preparation
    assert section == ImagePreparationSection(fit="squash", mean=IMAGENET[0], std=IMAGENET[1])
    page = recipe_of(parts_directory, LAVIN)
    assert load_recipe(page).model.image_preparation == section
