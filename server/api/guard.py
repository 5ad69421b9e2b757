"""What every request passes before and after the application: limits, deadlines, headers, and no trace of an error.

The application reads a body only once it knows who sends it; the limits hold while it reads.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from privacy.failures import sentence
from server.api.limits import Buckets
from server.api.problems import RefusalError, log, problem, too_many
from transport.address import network_of
from transport.api import LARGEST_RUN

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_SECONDS, SEND_SECONDS = 20.0, 20.0
"""For a whole body to come in, and for a client to take a part of an answer."""

LARGEST_BODY = 16 << 10
"""Bytes of any body but a signed run."""

RATE, BURST = 200.0, 400.0
"""Requests of one address: a second, and at once."""

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._addresses = app, Buckets(RATE, BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        seconds = self._addresses.take(network_of(scope["client"][0]))
        if seconds:
            refusal = too_many(seconds, "from your address")
            response = problem(refusal.status_code, refusal.detail, refusal.headers)
            await response(scope, receive, answer)
            return
        try:
            await self._app(scope, _Body(scope, receive), answer)
        except TimeoutError:  # the client takes no answer: uvicorn closes the connection
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the client learns nothing of it
            log.error("a request failed: %s", sentence(error))


class _Body:
    """Receives a request's body, within limits."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        is_run = scope["method"] == "POST" and scope["path"] == "/v1/runs"
        self._receive, self._left = receive, LARGEST_RUN if is_run else LARGEST_BODY
        self._largest = self._left
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        self._declared = int(declared) if declared.isdigit() else 0
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self._complete = False

    async def __call__(self) -> Message:
        """Receive a part of it.

        Raises:
            RefusalError: if it is too large or too slow.
        """
        if self._complete:  # what comes now says that the client has gone
            return await self._receive()
        if self._declared > self._largest:
            raise self._too_large()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body did not come within {BODY_SECONDS:g} s; try again over a faster line"
            raise RefusalError(HTTPStatus.REQUEST_TIMEOUT, detail, {"Connection": "close"}) from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        self._complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> RefusalError:
        detail = f"the body has more than {self._largest >> 10} KiB, which is the limit here"
        return RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"Connection": "close"})


class _Answer:
    """Sends an answer, with our headers."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        """Send a part of it.

        Raises:
            TimeoutError: if the client does not take it.
        """
        if message["type"] == "http.response.start":
            ours = {name for name, _ in _HEADERS}
            kept = [(name, value) for name, value in message["headers"] if name not in ours]
            message = {**message, "headers": [*kept, *_HEADERS]}
        async with asyncio.timeout(SEND_SECONDS):
            await self._send(message)
