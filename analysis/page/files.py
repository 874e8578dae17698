"""Files that the page asks its server for.

They lie under Gradio's own prefix: with server-side rendering Node answers for the page, and hands
only what begins like that on to Python.
"""

from __future__ import annotations

from pathlib import Path

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from d2cache.bundled import ASSETS

# Name, as in on-load.js and noscript.html -> file.
FILES = {
    "plotly.min.js": Path(plotly.__file__).parent / "package_data" / "plotly.min.js",
    "without-scripts.png": ASSETS / "pictures" / "light.png",
}


def routes(prefix: str) -> list[Route]:
    """A route for each file that is there; prefix: of Gradio's own paths, "/gradio_api"."""
    return [_route(f"{prefix}/{name}", file) for name, file in FILES.items() if file.exists()]


def _route(path: str, file: Path) -> Route:
    async def answer(request: Request) -> FileResponse:
        return FileResponse(file)

    return Route(path, answer)
