"""Images with captions: rows that name both."""

from __future__ import annotations

from varifocal.data.example import Example, Message
from varifocal.data.formats.base import ParseOptions, id_of, short, task_of
from varifocal.data.formats.questions import CAPTION_PROMPT, user_turn
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import locate_image
from varifocal.errors import AnswerError, ImageError

_IMAGES = ("file_name", "image")
_CAPTIONS = ("caption", "captions", "text", "blip_caption")


def is_caption(record: Record) -> bool:
    """Tell whether a row has an image and a caption."""
    row = record.row
    return any(key in row for key in _IMAGES) and any(key in row for key in _CAPTIONS)


def parse_caption(record: Record, asked: ParseOptions) -> Example:
    """Make an example that describes an image.

    The image is `file_name` (as in an imagefolder of the `datasets` library) or `image`; the
    caption is `caption`, `text`, `blip_caption` (LLaVA's), or the first of a list `captions`.

    Raises:
        DataError: one of them is missing.
    """
    row, where = record.row, record.where
    value = next((row[key] for key in _IMAGES if row.get(key)), None)
    if value is None:
        raise ImageError(f"{where} names no image: {' or '.join(_IMAGES)} is needed")
    caption = next((row[key] for key in _CAPTIONS if row.get(key)), None)
    if isinstance(caption, list):
        caption = caption[0]
    if not isinstance(caption, str) or not caption.strip():
        raise AnswerError(
            f"{where}: its caption ({' or '.join(_CAPTIONS)}) is {short(caption)}, a text is needed"
        )
    image = locate_image(value, asked.image_folder, where)
    return Example(
        (user_turn(CAPTION_PROMPT, image), Message("assistant", (caption.strip(),))),
        id=id_of(record),
        source=record.source,
        task=task_of(record, asked),
    )
