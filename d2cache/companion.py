"""What the packages beside this one add to it, named here and looked up when it is wanted.

Imports go one way, from `app` and `analysis` to `d2cache`, which works without them. A notebook and
the command line should offer what they can do all the same; so this file has their names as text,
and nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

BESIDE = Path(__file__).resolve().parents[1]
PAGE = "app:main"  # serves the page
TRACE_HTML = "analysis.page.notebook:shown"  # a trace as the stage, for a notebook cell


def companion(name: str) -> Callable[..., Any] | None:
    """The function MODULE:FUNCTION of a package that is installed with this one; else None.

    A package of the same name in another folder, such as a user's own `analysis`, is not taken.
    """
    package = name.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    if Path(spec.origin).resolve() not in (
        BESIDE / f"{package}.py",
        BESIDE / package / "__init__.py",
    ):
        return None
    return pkgutil.resolve_name(name)
