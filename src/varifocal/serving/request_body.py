"""From a body's bytes to a conversation, in threads of its own and within bounds.

JSON is parsed and texts are tokenised by code that holds Python's lock or takes seconds, so none of
it runs on the event loop, and what would hold the lock for long is refused by counting bytes.
Images come from `data:` URIs, or from hosts that the user has named.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import ValidationError

from varifocal.data.example import Image, Message
from varifocal.errors import DataError
from varifocal.serving.chat_request import (
    Bounds,
    ChatMessage,
    ChatRequest,
    ImagePart,
    RequestForm,
    TextPart,
)
from varifocal.serving.error_response import Refused, first_mistake
from varifocal.serving.settings import ServeSettings

_THREADS = 4
_MOST_OPENED = 20_000
"""Objects and lists of a body, besides one for every tenth character that its texts may have."""

_T = TypeVar("_T")
_Form = TypeVar("_Form", bound=RequestForm)


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

    def parse(self, body: bytes, form: type[_Form]) -> _Form:
        """Validate a body.

        Args:
            body: JSON.
            form: what it is to be.

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
            return form.model_validate_json(body, context=bounds)
        except ValidationError as error:
            raise first_mistake(error) from error

    def messages(self, asked: ChatRequest, first: int = 0) -> list[Message]:
        """Read a request's turns and images.

        Args:
            asked: the request.
            first: what a refusal numbers its first turn.

        Raises:
            Refused: an image is none, or too large; the field is named.
        """
        return [self._message(number, turn) for number, turn in enumerate(asked.messages, first)]

    def _check_structure(self, body: bytes) -> None:
        """Refuse a body of so many objects or values that parsing it would hold up everybody."""
        chars = self.settings.max_text_chars
        opened, values = body.count(b"{") + body.count(b"["), body.count(b",")
        if opened > _MOST_OPENED + chars // 10 or values > _MOST_OPENED + chars:
            message = (
                f"the body has {opened:,} brackets and {values:,} commas, more than a conversation "
                f"of {chars:,} characters needs; send less"
            )
            raise Refused(413, "request_too_large", message)

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


_TIMEOUT_S = 10.0
_BLANKS = b" \t\r\n\f"


class PixelBudget:
    """Lets threads decode images while these have, together, no more pixels than it says.

    Args:
        most: pixels at a time; an image that has more is decoded alone.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, and hold it."""
        pixels = min(pixels, self.most)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + pixels <= self.most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def read_image(url: str, settings: ServeSettings, budget: PixelBudget) -> Image:
    """Read and check an image; its size is read from its header before anything is decoded.

    Args:
        url: a `data:` URI, or an `https` address of an allowed host.
        settings: the server's bounds.
        budget: of pixels that are decoded at a time.

    Raises:
        DataError: it is neither, is too large, or is no image.
    """
    url = url.strip()
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        content = _from_data(url)
    elif scheme in ("http", "https"):
        content = _fetch(url, settings)
    else:
        raise DataError(
            "image_url.url must be a data: URI (data:image/png;base64,...); files are not read"
        )
    image = Image(data=content)
    width, height = image.size()
    if width * height > settings.max_image_mpixels * 1e6:
        raise DataError(
            f"an image has {width} x {height} pixels, and this server takes "
            f"{settings.max_image_mpixels:g} million; send a smaller one"
        )
    with budget.take(width * height):
        image.open()
    return image


def _from_data(url: str) -> bytes:
    r"""Decode a `data:` URI (RFC 2397); what the image is, its content says.

    >>> _from_data("data:image/jpg;charset=utf-8;base64,aG\nVs bG8")
    b'hello'
    >>> _from_data("DATA:image/gif,GIF%38")
    b'GIF8'
    """
    head, comma, body = url[len("data:") :].partition(",")
    kind, *options = [part.strip().lower() for part in head.split(";")]
    is_image = kind.startswith("image/") or kind in ("", "application/octet-stream")
    if not comma or not is_image:
        raise DataError(
            "an image's data: URI must begin with its type, as data:image/png;base64, does"
        )
    content = unquote_to_bytes(body)
    if "base64" not in options:
        return content
    content = content.translate(bytes.maketrans(b"-_", b"+/"), _BLANKS).rstrip(b"=")
    try:  # an image's end may be without the padding, as in browsers
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("an image's data: URI is no valid base64") from error


def _fetch(url: str, settings: ServeSettings) -> bytes:
    """Fetch an image from a host that the user has allowed, and from no other on the way."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise DataError("image_url.url is no address") from error
    if host not in settings.image_hosts:
        raise DataError(
            "this server fetches no images from the network; send the image itself as a data: "
            "URI, or start it with --image-host"
        )
    if parts.scheme != "https" or port not in (None, 443) or parts.username:
        raise DataError("images are fetched by plain https alone")
    limit = int(settings.max_body_mib * 2**20)
    try:
        with _opener().open(url, timeout=_TIMEOUT_S) as answer:
            content = answer.read(limit + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataError(f"the image at {host} cannot be fetched") from error
    if len(content) > limit:
        raise DataError(f"the image at {host} is larger than {settings.max_body_mib:g} MiB")
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection could lead anywhere, such as into the server's own network."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)
