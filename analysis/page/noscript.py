"""What a browser without JavaScript shows: a sentence and a picture.

Gradio puts its `head` into the page with a script, so a <noscript> there is never read. The
middleware adds one to the HTML as it is sent. With server-side rendering Node sends the HTML, and
all that it takes from here are the styles: there `style` says the same.
"""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d2cache.bundled import ASSETS

WORDS = ASSETS / "page" / "noscript.html"
# Shown by a browser that runs no scripts. Where Python serves the page, styles come by script.
STYLE = """
@media (scripting: none) {{
  body::before {{
    max-width: 60rem;
    margin: 2rem auto;
    padding: 0 1rem;
    font: 1.1rem/1.6 system-ui, sans-serif;
    white-space: pre-line;
    content: "{words}";
  }}
  body::after {{
    width: min(60rem, 100%);
    aspect-ratio: 5 / 3;
    margin: 0 auto;
    background: url("{src}") no-repeat top / contain;
    content: "" / "{alt}";
  }}
}}
"""


def style() -> str:
    """WORDS as styles: the heading and the sentence, and the picture below."""
    markup = WORDS.read_text(encoding="utf-8")
    lines = [" ".join(text.split()) for text in re.split("<[^>]*>", markup) if text.strip()]
    image = dict(re.findall(r'(src|alt)="([^"]*)"', markup))
    new_line = r"\a "  # in a string of a style
    return STYLE.format(words=new_line.join(lines), **image)


class WithoutScripts:
    """ASGI middleware: the page at / begins with WORDS."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.words = WORDS.read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path") if scope.get("method") == "GET" else None
        if path == "/":
            await self.app(scope, receive, _Page(self.words, send))
        else:
            await self.app(scope, receive, send)


class _Page:
    """Sends an answer on, with words after the <body> tag if it is HTML."""

    def __init__(self, words: bytes, send: Send):
        self.words, self.send = words, send
        self.start: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_html(message):
            self.start = message  # its length is not known yet
        elif self.start is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self._finish(self.start)

    async def _finish(self, start: Message) -> None:
        open_tag = self.body.find(b"<body")
        at = self.body.find(b">", open_tag) + 1 if open_tag >= 0 else 0
        body = self.body[:at] + self.words + self.body[at:] if at else self.body
        headers = [(k, v) for k, v in start["headers"] if k != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await self.send({**start, "headers": [*headers, length]})
        await self.send({"type": "http.response.body", "body": body})


def _is_html(start: Message) -> bool:
    headers = dict(start["headers"])
    return b"text/html" in headers.get(b"content-type", b"") and b"content-encoding" not in headers


WITHOUT_SCRIPTS = Middleware(WithoutScripts)
