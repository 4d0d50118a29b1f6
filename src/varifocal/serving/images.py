"""Pictures of a request: from `data:` URIs, or from hosts that the user has named."""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.serving.settings import ServeSettings

_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp")
_TIMEOUT_S = 10.0


def read_image(url: str, settings: ServeSettings) -> Image:
    """Read and check a picture.

    Args:
        url: a `data:` URI in base64, or an `https` address of an allowed host.
        settings: the server's bounds.

    Raises:
        DataError: it is neither, is too large, or is no picture.
    """
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
    width, height = image.open().size
    if width * height > settings.max_image_mpixels * 1e6:
        raise DataError(
            f"a picture has {width} x {height} pixels, and this server takes "
            f"{settings.max_image_mpixels:g} million; send a smaller one"
        )
    return image


def _from_data(url: str) -> bytes:
    head, comma, body = url.partition(",")
    kind = head[len("data:") :].removesuffix(";base64").lower()
    if not comma or not head.lower().endswith(";base64") or kind not in _TYPES:
        raise DataError(
            f"a picture's data: URI must begin with one of {', '.join(_TYPES)} and ';base64,'"
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("a picture's data: URI is no valid base64") from error


def _fetch(url: str, settings: ServeSettings) -> bytes:
    """Fetch a picture from a host that the user has allowed, and from no other on the way."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise DataError("image_url.url is no address") from error
    if host not in settings.image_hosts:
        raise DataError(
            "this server fetches no pictures from the network; send the picture itself as a data: "
            "URI, or start it with --image-host"
        )
    if parts.scheme != "https" or port not in (None, 443) or parts.username:
        raise DataError("pictures are fetched by plain https alone")
    limit = int(settings.max_body_mib * 2**20)
    try:
        with _opener().open(url, timeout=_TIMEOUT_S) as answer:
            content = answer.read(limit + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataError(f"the picture at {host} cannot be fetched") from error
    if len(content) > limit:
        raise DataError(f"the picture at {host} is larger than {settings.max_body_mib:g} MiB")
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection could lead anywhere, such as into the server's own network."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)
