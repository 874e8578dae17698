"""Plain Python values of what a caller passes: numbers of numpy and torch are numbers too.

Traces, links and error messages hold plain values, so every public setting goes through here.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch


def whole(value: Any) -> int | None:
    """The int of an integer of any kind; None for everything else, switches and 4.0 included."""
    if isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) in (bool, torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(value: Any) -> int | float | None:
    """The int or float of a real number of any kind, NaN and infinity included; else None."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_complex():
        value = value.item()
    if isinstance(value, (float, np.floating)):
        return float(value)
    return whole(value)


def switch(value: Any) -> bool | None:
    """True or False, of Python or numpy; None for everything else, 0 and 1 included."""
    return bool(value) if isinstance(value, (bool, np.bool_)) else None
