"""What is asked of the server before Gradio reads it: no request is too large, none comes too
often, and none that makes no sense is answered by a fault.

Gradio writes an upload to the disk before it looks at its length, and answers what it cannot make
sense of with the status 500.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from analysis.page.bounds import MB, Bounds, Rate

LOG = logging.getLogger("d2cache.gate")
API = "/gradio_api"
# What Gradio offers and this page has no use for: its statistics, its recordings, its editor, its
# way to other Spaces, and history of runs.
SHUT = ("monitoring", "process_recording", "vibe-", "undo-vibe", "proxy=", "run-history", "runs")
UNUSED = "There is nothing here: this page does not offer it."
SPACE = "SPACE_ID"  # a variable that every Space has; none is reached but through the hub's proxy
UPLOAD = "/upload"  # end of the path that takes files
LARGEST_REQUEST = MB  # bytes of any other
FORM = MB // 16  # bytes of an upload that are not the file's
HOUR = 3600.0  # seconds after which Gradio deletes what was uploaded
LINGER, LINGER_BYTES = 2.0, 16 * MB  # seconds and bytes that are let pass after a refusal
MOST_REPORTED = 4096  # bytes of a fault that are looked at

TOO_LARGE = "This file is larger than {} MB: load a trace that this page saved."
TOO_LONG = "This request is longer than a page needs: send less."
NO_FILES = "Files are not taken here: load a trace on the page."
TOO_MUCH = "Too much has been uploaded from your address in the last hour: try again later."
FULL = "Too much has been uploaded here in the last hour: try again later."
TOO_OFTEN = "Your address sends more than {} requests a minute: wait a minute, then go on."
NO_ANSWER = "This request cannot be answered; /gradio_api/info says what can be asked."
# What Gradio streams where it cannot answer, and the same with a sentence. Within a JSON string the
# quotes would have a backslash, so that nobody's text is changed.
SILENT = {
    b'"output":{"error":null': b'"output":{"error":' + json.dumps(NO_ANSWER).encode(),
    b'event: error\ndata: {"error": null': b'event: error\ndata: {"error": '
    + json.dumps(NO_ANSWER).encode(),
}


class Gate:
    """ASGI middleware around the whole page."""

    def __init__(self, app: ASGIApp, bounds: Bounds, on_space: bool):
        self.app, self.bounds, self.on_space = app, bounds, on_space
        self.requests = Rate(bounds.requests)
        self.hourly = Rate(bounds.hourly_mb * MB, HOUR)
        self.all_hourly = Rate(bounds.all_hourly_mb * MB, HOUR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refused = self.refused(scope)
        if refused is None:
            await self.guarded(scope, receive, send)
        else:
            await _refuse(refused, receive, send)

    def refused(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further; None to any other."""
        path = scope["path"].removeprefix(API).lstrip("/")
        if path.startswith(SHUT):
            return _said(scope, UNUSED, 404)
        if scope["method"] in ("GET", "HEAD"):
            return None
        if not self.requests.add(self.address(scope)):
            return _said(scope, TOO_OFTEN.format(self.bounds.requests), 429)
        headers = Headers(scope=scope)
        announced, kind = headers.get("content-length", ""), headers.get("content-type", "")
        if announced.isdecimal() and int(announced) > self.longest(scope):
            return self.too_large(scope)
        if kind.lower().startswith("multipart/") and not _uploads(scope):
            return _said(scope, NO_FILES, 415)  # Gradio would keep them
        return None

    def longest(self, scope: Scope) -> int:
        """Bytes that the body of a request may have."""
        return self.bounds.upload_mb * MB + FORM if _uploads(scope) else LARGEST_REQUEST

    def too_large(self, scope: Scope) -> Response:
        words = TOO_LARGE.format(self.bounds.upload_mb) if _uploads(scope) else TOO_LONG
        return _said(scope, words, 413)

    def address(self, scope: Scope) -> str:
        """Who asks: the other end of the connection, or whom a proxy on this machine names as such
        (uvicorn sees to that). On a Space it is the last public address that was passed on: the
        hub's proxies have written it, and a visitor may have written those before it."""
        host = scope["client"][0] if scope.get("client") else ""
        passed_on = Headers(scope=scope).getlist("x-forwarded-for") if self.on_space else []
        named = [one.strip() for one in ",".join(passed_on).split(",")]
        return _counted(next(filter(_is_public, reversed(named)), host))

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on; what goes wrong with it becomes one sentence."""
        body = _Body(self, scope, receive)
        answer = _Answer(send, body)
        try:
            await self.app(scope, body, answer)
        except Exception as fault:  # of whatever library: the server goes on
            if answer.began:
                raise
            if body.refused is None:
                LOG.warning("%s %s: %r", scope["method"], scope["path"], fault)
        if not answer.began:
            if body.refused:
                await _refuse(body.refused, receive, send)
            else:
                await _said(scope, answer.told() or NO_ANSWER, 400)(scope, receive, send)


class _Body:
    """A request's body as it arrives; too much of it ends in an exception that deletes the part
    that has been written to the disk, as does a connection that drops."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive):
        self.gate, self.scope, self.receive = gate, scope, receive
        self.left = gate.longest(scope)
        self.uploads, self.address = _uploads(scope), gate.address(scope)
        self.refused: Response | None = None
        self.whole = False

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.count(len(message.get("body", b"")))
            self.whole = not message.get("more_body", False)
        elif self.uploads and not self.whole:
            raise MultiPartException("the connection was closed")
        return message

    def count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            self.refused = self.gate.too_large(self.scope)
        elif self.uploads and not self.gate.hourly.add(self.address, size):
            self.refused = _said(self.scope, TOO_MUCH, 429)
        elif self.uploads and not self.gate.all_hourly.add("all", size):
            self.refused = _said(self.scope, FULL, 429)
        if self.refused is not None:
            raise MultiPartException("refused")


class _Answer:
    """Sends an answer on, unless it is a fault or the request has been refused."""

    def __init__(self, send: Send, request: _Body):
        self.send, self.request = send, request
        self.began = self.streams = False
        self.body = b""  # of an answer that is not sent on

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began = message["status"] != 500 and self.request.refused is None
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self.streams = kind.startswith("text/event-stream")
        if self.began:
            if message["type"] == "http.response.body" and self.streams:
                message = {**message, "body": _spoken(message.get("body", b""))}
            await self.send(message)
        elif len(self.body) < MOST_REPORTED:
            self.body += message.get("body", b"")

    def told(self) -> str:
        """The one line that a fault was explained with; "" for none."""
        try:
            line = json.loads(self.body)["error"]
        except (ValueError, LookupError, TypeError):
            return ""
        return line if isinstance(line, str) and "\n" not in line else ""


async def _refuse(refused: Response, receive: Receive, send: Send) -> None:
    """Sends a refusal and closes the connection, a little later: who is still sending would lose
    the answer otherwise."""
    headers = [*refused.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": refused.body, "more_body": True})
    left = LINGER_BYTES
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(LINGER):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    break
    await send({"type": "http.response.body", "body": b""})


def _spoken(body: bytes) -> bytes:
    """A part of an answer, with a sentence where Gradio says nothing about a fault."""
    if len(body) < MOST_REPORTED:
        for silent, said in SILENT.items():
            body = body.replace(silent, said)
    return body


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _counted(host: str) -> str:
    """What is counted as one visitor: an address, or 64 bits of a longer one, which belong to
    whoever has one of them."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


def _uploads(scope: Scope) -> bool:
    return scope["path"].rstrip("/").endswith(UPLOAD)


def _said(scope: Scope, words: str, status: int) -> Response:
    """A sentence, in the form in which Gradio's client shows it to a visitor."""
    if _uploads(scope):
        return PlainTextResponse(words, status)
    return JSONResponse({"detail": words, "error": words}, status)


def gate(bounds: Bounds) -> Middleware:
    return Middleware(Gate, bounds=bounds, on_space=SPACE in os.environ)
