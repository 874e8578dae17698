"""Memory that the process has freed goes back to the system."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable


def give_back() -> None:
    """Gives back what is free: glibc keeps the pages of a long run, hundreds of megabytes, where
    small things that are still in use lie between them. Without glibc it does nothing."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
