"""What stands before every request: who asks, from where, what and how much; plain ASGI.

A body is received here, whole and in time, so that what comes after it only computes.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from varifocal.serving.settings import ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refusal = tuple[int, str, str]
"""Status, code and sentence."""

OPEN = ("/health", "/")
"""Paths that need no key; so do the page's files, under `/page/`."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_PORTS = {"http": 80, "https": 443}
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Guard:
    """Refuses what may not come in, before it is read.

    Args:
        app: what is guarded.
        settings: the server's bounds.

    Attributes:
        held: bytes of the bodies of all requests that are being received or answered.
    """

    def __init__(self, app: App, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings
        self.limit = int(settings.max_body_mib * 2**20)
        self.held_limit = max(int(settings.max_held_mib * 2**20), self.limit)
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["method"] == "POST":
            await self._serve_body(scope, receive, send, refusal)
        elif refusal is not None:
            await _answer(send, *refusal)
        else:
            await self.app(scope, receive, _with_headers(send))

    async def _serve_body(
        self, scope: Scope, receive: Receive, send: Send, refusal: Refusal | None
    ) -> None:
        body = _Body(receive, self)
        try:
            refusal = refusal or await body.read(self.settings.max_body_s)
            if refusal is not None:
                is_waiting = any(name.lower() == b"expect" for name, _ in scope["headers"])
                rest = None if is_waiting else body.skip(self.settings.max_header_s)
                await _answer(send, *refusal, before_end=rest)
            elif not body.has_left:
                await self.app(scope, body, _with_headers(send))
        finally:
            self.held -= body.held

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self.settings.is_private and not is_local(host):
            return 403, "wrong_host", "this server is for its own machine; call it by localhost"
        path = scope["path"]
        is_open = path in OPEN or path.startswith("/page/")
        if self.settings.api_key is not None and not is_open and not self._has_key(headers):
            return 401, "invalid_api_key", "send the server's key: Authorization: Bearer KEY"
        if scope["method"] != "POST":
            return None
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not self._may_ask(origin, host):
            message = (
                f"a page of {origin[:100]} may not ask this server; start it with --allow-origin "
                f"{origin[:100]} if it should"
            )
            return 403, "wrong_origin", message
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            return 415, "wrong_content_type", "send JSON: Content-Type: application/json"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "wrong_content_length", "Content-Length must be a number"
        return self.too_large() if int(length[:20]) > self.limit else None

    def _may_ask(self, origin: str, host: str) -> bool:
        """Tell whether a page of an origin may ask: the server's own, or one that is allowed."""
        allowed = self.settings.allow_origins
        if "*" in allowed or origin.lower() in (each.lower().rstrip("/") for each in allowed):
            return True
        scheme, _, place = origin.lower().partition("://")
        page = split_host(place, _PORTS.get(scheme))
        return page is not None and page == split_host(host, _PORTS.get(scheme))

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(b"authorization", b"")
        wanted = f"Bearer {self.settings.api_key}".encode()
        return hmac.compare_digest(given, wanted)

    def too_large(self) -> Refusal:
        """Refuse a body that is too large."""
        text = f"a request may have {self.settings.max_body_mib:g} MiB; send smaller images"
        return 413, "request_too_large", text


class _Body:
    """A request's body: read up to the limits, then given to the app at once.

    Attributes:
        held: its bytes, counted in the guard's.
        has_left: whether the client went away.
    """

    def __init__(self, receive: Receive, guard: Guard) -> None:
        self.receive = receive
        self.guard = guard
        self.held = 0
        self.has_left = False
        self._content: bytes | None = None

    async def read(self, max_s: float) -> Refusal | None:
        """Receive it all; None, or why it is refused."""
        try:
            return await asyncio.wait_for(self._read(), max_s)
        except asyncio.TimeoutError:
            return (
                408,
                "request_timeout",
                f"the body did not come within {max_s:g} s; send it again",
            )

    async def _read(self) -> Refusal | None:
        pieces = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.has_left = True
                return None
            piece = message.get("body", b"")
            self.held += len(piece)
            self.guard.held += len(piece)
            if self.held > self.guard.limit:
                return self.guard.too_large()
            if self.guard.held > self.guard.held_limit:
                return 429, "too_many_bytes", "too many large requests at a time; ask again later"
            pieces.append(piece)
            if not message.get("more_body", False):
                self._content = b"".join(pieces)
                return None

    async def skip(self, max_s: float) -> None:
        """Receive the rest and drop it: a client that is still sending would not see its answer."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._skip(), max_s)

    async def _skip(self) -> None:
        while self._content is None:
            message = await self.receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    async def __call__(self) -> MutableMapping[str, Any]:
        """Be the app's `receive`."""
        if self._content is None:
            return await self.receive()
        content, self._content = self._content, None
        return {"type": "http.request", "body": content, "more_body": False}


def split_host(host: str, default: int | None = None) -> tuple[str, int | None] | None:
    """Split a Host header, or the place of an Origin, into name and port; None where it is neither.

    >>> split_host("LocalHost:8000"), split_host("[::1]:80"), split_host("localhost", 80)
    (('localhost', 8000), ('::1', 80), ('localhost', 80))
    >>> split_host("[::1]evil.example"), split_host("localhost:80@evil.example"), split_host("")
    (None, None, None)
    """
    if not host or set(host) & set("/?#@\\, \t"):
        return None
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    bracketed = f"[{name}]" if host.startswith("[") else name
    rest = host.lower().removeprefix(bracketed or "")
    if not name or (rest and not rest[1:].isdigit()) or rest[:1] not in ("", ":"):
        return None
    return name, default if port is None else port


def is_local(host: str) -> bool:
    """Tell a name for this machine; another one may be a page's that had its name point here.

    >>> is_local("localhost:8000"), is_local("127.0.0.1"), is_local("[::1]:8000")
    (True, True, True)
    >>> is_local("127.0.0.1.nip.io"), is_local("localhost.evil.example"), is_local("0.0.0.0")
    (False, False, False)
    """
    parts = split_host(host)
    if parts is None:
        return False
    if parts[0] == "localhost":
        return True
    try:  # an address in figures is where the client went; no name server has a say in it
        return ipaddress.ip_address(parts[0]).is_loopback
    except ValueError:
        return False


def _with_headers(send: Send) -> Send:
    async def send_more(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return send_more


async def _answer(
    send: Send,
    status: int,
    code: str,
    message: str,
    before_end: Awaitable[None] | None = None,
) -> None:
    """Answer with a refusal, whose words are sent before something is waited for."""
    kind = _KINDS.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    start = {"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if before_end is not None:
        await before_end
    await send({"type": "http.response.body", "body": b""})
