"""Connections that end: uvicorn's HTTP protocol with times for a client that stops in the middle.

uvicorn waits for ever for the rest of a request's head, for the rest of a body that was answered
early, and for a client that does not read. The time of a body is the `Guard`'s, of an answer the
API's.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from varifocal.serving.settings import ServeSettings


def server_config(app: Any, settings: ServeSettings) -> uvicorn.Config:
    """Configure uvicorn for an app of `create_app`.

    Args:
        app: the app.
        settings: its bounds.
    """
    protocol = type("PatientProtocol", (PatientProtocol,), {"settings": settings})
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=int(settings.drain_s),
        server_header=False,
    )


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose client keeps it waiting.

    Attributes:
        settings: `max_header_s` for a request's head, or a body whose answer is written already;
            `max_stall_s` for an answer that nobody reads.
    """

    settings = ServeSettings()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._awaited: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read what has come; wait on if a request is still to come."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the end of a body that was answered early."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the times."""
        super().connection_lost(exc)
        for timer in (self._awaited, self._stalled):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """Cut a client off that does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.settings.max_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on with a client that reads."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _watch(self) -> None:
        """Start the time of a head that is to come; stop it where a request is being answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None
        elif not is_answering and self._awaited is None:
            wait = self.settings.max_header_s
            self._awaited = self.loop.call_later(wait, self.transport.close)
