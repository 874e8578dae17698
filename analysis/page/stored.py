"""The runs that come with the page."""

from __future__ import annotations

import json

from d2cache import Trace
from d2cache.bundled import ASSETS


def listed() -> dict[str, dict]:
    """The stored runs of assets/traces, in their order: name -> title, words (a sentence or two)
    and prompt; `load` loads one."""
    index = json.loads((ASSETS / "traces" / "index.json").read_text(encoding="utf-8"))
    return {one.pop("name"): one for one in index}


def load(name: str) -> Trace:
    """A stored run by its name; ValueError names those that there are."""
    if name not in listed():
        raise ValueError(f"there is no stored run {name!r}; choose of {', '.join(listed())}")
    return Trace.load(ASSETS / "traces" / f"{name}.safetensors")
