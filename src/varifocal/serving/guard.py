"""What stands before every request: size, kind, key and sender; plain ASGI, so streams pass."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from varifocal.serving.settings import LOOPBACK, ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/")
"""Paths that need no key; so do the page's files, under `/page/`."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """Refuses what may not come in, before it is read.

    Args:
        app: what is guarded.
        settings: the server's bounds.
    """

    def __init__(self, app: App, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings
        self.limit = int(settings.max_body_mib * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        counted = _Counted(receive, self.limit)

        async def send_counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                if counted.too_long:
                    return
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if not counted.too_long:
                await send(message)

        await self.app(scope, counted, send_counted)
        if counted.too_long:
            await _answer(send, *self._too_long())

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        if self.settings.is_private and not _is_local(headers.get(b"host", b"")):
            return 403, "wrong_host", "this server is for its own machine; call it by localhost"
        path = scope["path"]
        is_open = path in OPEN or path.startswith("/page/")
        if self.settings.api_key is not None and not is_open and not self._has_key(headers):
            return 401, "invalid_api_key", "send the server's key: Authorization: Bearer KEY"
        if scope["method"] != "POST":
            return None
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            return 415, "wrong_content_type", "send JSON: Content-Type: application/json"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "wrong_content_length", "Content-Length must be a number"
        return self._too_long() if int(length) > self.limit else None

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(b"authorization", b"")
        wanted = f"Bearer {self.settings.api_key}".encode()
        return hmac.compare_digest(given, wanted)

    def _too_long(self) -> tuple[int, str, str]:
        text = f"a request may have {self.settings.max_body_mib:g} MiB; send smaller pictures"
        return 413, "request_too_large", text


class _Counted:
    """Receives a body up to a limit, then pretends that its sender has left."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.left = limit
        self.too_long = False

    async def __call__(self) -> MutableMapping[str, Any]:
        if self.too_long:
            return {"type": "http.disconnect"}
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            self.too_long = True
            return {"type": "http.disconnect"}
        return message


def _is_local(host: bytes) -> bool:
    """Tell a name for this machine; another one may be a page's that had its name point here."""
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name in (*LOOPBACK, "testserver")


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
