"""From a body's bytes to a conversation, in threads of its own and within bounds.

JSON is parsed and texts are tokenised by code that holds Python's lock or takes seconds, so none of
it runs on the event loop, and what would hold the lock for long is refused by counting bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import ValidationError

from varifocal.data.example import Image, Message
from varifocal.errors import DataError
from varifocal.serving.chat_request import Bounds, ChatMessage, ChatRequest, ImagePart, TextPart
from varifocal.serving.images import PixelBudget, read_image
from varifocal.serving.refusal import Refused, first_mistake
from varifocal.serving.settings import ServeSettings

_THREADS = 4
_MOST_OPENED = 20_000
"""Objects and lists of a body, besides one for every tenth character that its texts may have."""

_T = TypeVar("_T")


class Reader:
    """Reads bodies.

    Args:
        settings: the server's bounds.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.pixels = PixelBudget(int(settings.max_image_mpixels * 1e6))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reader")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do something in one of the reader's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads when they are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def parse(self, body: bytes) -> ChatRequest:
        """Validate a body.

        Raises:
            Refused: it is no JSON, not of the form, or beyond the bounds.
        """
        self._check_structure(body)
        settings = self.settings
        bounds = Bounds(
            max_messages=settings.max_messages,
            max_parts=settings.max_parts,
            max_chars=settings.max_text_chars,
            max_images=settings.max_images,
        )
        try:
            return ChatRequest.model_validate_json(body, context=bounds)
        except ValidationError as error:
            raise first_mistake(error) from error

    def messages(self, asked: ChatRequest) -> list[Message]:
        """Read a request's turns and images.

        Raises:
            Refused: an image is none, or too large; the field is named.
        """
        return [self._message(number, turn) for number, turn in enumerate(asked.messages)]

    def _check_structure(self, body: bytes) -> None:
        """Refuse a body of so many objects or values that parsing it would hold up everybody."""
        chars = self.settings.max_text_chars
        opened, values = body.count(b"{") + body.count(b"["), body.count(b",")
        if opened > _MOST_OPENED + chars // 10 or values > _MOST_OPENED + chars:
            told = (
                f"the body has {opened:,} brackets and {values:,} commas, more than a conversation "
                f"of {chars:,} characters needs; send less"
            )
            raise Refused(413, "request_too_large", told)

    def _message(self, number: int, turn: ChatMessage) -> Message:
        role = "system" if turn.role == "developer" else turn.role
        if not isinstance(turn.content, list):
            return Message(role, (turn.content or "",))
        parts = (self._part(number, place, part) for place, part in enumerate(turn.content))
        return Message(role, tuple(parts))

    def _part(self, number: int, place: int, part: TextPart | ImagePart) -> str | Image:
        if isinstance(part, TextPart):
            return part.text
        try:
            return read_image(part.image_url.url, self.settings, self.pixels)
        except DataError as error:
            param = f"messages.{number}.content.{place}.image_url"
            raise Refused(400, "invalid_image", str(error), param) from error
