"""What a server allows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from varifocal.errors import VarifocalError

_TIMES = ("max_header_s", "max_body_s", "max_stall_s", "max_time_s", "drain_s")
_MOST = 1e6
_ORIGIN = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s]+")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeSettings:
    """The bounds of a server; every request that passes one is answered by a clean 4xx.

    Attributes:
        host: the address it listens on; loopback unless told otherwise.
        port: 0 takes a free one.
        api_key: what a client must send as `Authorization: Bearer ...`; None asks for none.
        max_body_mib: of a request, MiB.
        max_images: images in one request.
        max_image_mpixels: of one image, millions of pixels.
        max_messages: in one request.
        max_parts: of texts and images, in all messages of one request.
        max_text_chars: of all texts of one request, characters.
        max_new_tokens: of an answer; a request may ask for fewer.
        max_queue: requests that wait while max_batch are answered; one more answers 429.
        max_batch: requests that are answered at a time.
        max_time_s: from a request's arrival to its last token, seconds.
        max_held_mib: of all requests that are being received or answered, MiB; beyond it 429.
        max_header_s: for a client to send a request's head, or the rest of a refused body, seconds.
        max_body_s: for a client to send a request's body, seconds.
        max_stall_s: how long a client may leave an answer unread before it is cut off, seconds.
        allow_origins: of other sites' pages that may ask, such as "https://chat.example"; the
            server's own page always may.
        image_hosts: names of hosts whose `https` images are fetched; none by default.
        drain_s: how long a server that is told to stop goes on answering, seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_body_mib: float = 20.0
    max_images: int = 8
    max_image_mpixels: float = 25.0
    max_messages: int = 100
    max_parts: int = 256
    max_text_chars: int = 1_000_000
    max_new_tokens: int = 1024
    max_queue: int = 64
    max_batch: int = 8
    max_time_s: float = 300.0
    max_held_mib: float = 256.0
    max_header_s: float = 10.0
    max_body_s: float = 60.0
    max_stall_s: float = 30.0
    allow_origins: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse bounds that bind nothing, and origins that no browser sends.

        Raises:
            VarifocalError: the bound's name and what was given.
        """
        for name in ("max_body_mib", "max_image_mpixels", "max_held_mib", *_TIMES):
            value = getattr(self, name)
            if not (0 < value < _MOST):
                raise VarifocalError(f"{name} must be above 0 and at most {_MOST:g}, not {value}")
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise VarifocalError(
                    f"an allowed origin is a scheme and a host, such as https://chat.example or "
                    f"http://localhost:3000, or * for all, not '{origin}'"
                )

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
