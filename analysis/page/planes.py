"""How the values of a step become bytes, one plane for each kind, and back in the page's scripts.

The scales are part of the contract (`analysis.page.contract`), so both sides get them from here.
A byte is called a code; where a scale says so, code 0 means that there is no value.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

LAST = 255  # the largest code
MAP_ROOT = 2  # of a cell's share of the largest, or a position's own weight would drown the rest


@dataclass(frozen=True)
class Shares:
    """Shares of one, linear: `zero` is the code of 0, LAST that of 1; lower codes mean no value."""

    zero: int

    def codes(self, shares):
        return self.zero + (LAST - self.zero) * shares


@dataclass(frozen=True)
class Powers:
    """Logarithmic: `one` is the code of 1, `doubling` codes double it; 2 ** least is the least."""

    one: int
    least: int
    doubling: int = 16

    def codes(self, values):
        """A value below the least has the least's code."""
        return self.one + self.doubling * np.log2(np.maximum(values, 2.0**self.least))

    def codes_or_none(self, values):
        """Code 0 for values below the least, and for NaN."""
        there = values >= 2.0**self.least
        return np.where(there, np.clip(self.codes(np.where(there, values, 1)), 1, LAST), 0)


CONFIDENCE = Shares(1)  # code 0: no prediction was made
DENSITY = Shares(0)
ROLLOUT = Powers(one=128, least=-8)  # 1 is the mean over the canvas
DRIFT = Powers(one=239, least=-14)  # 1 - cosine, up to 2
DIVERGENCE = Powers(one=191, least=-12)  # nats, up to 16


def plane(values) -> str | None:
    """Codes as base64 of bytes; None stays None."""
    if values is None:
        return None
    whole = np.clip(np.round(values), 0, LAST).astype(np.uint8)
    return base64.b64encode(whole.tobytes()).decode()


def run_lengths(parts: np.ndarray | None) -> str | None:
    """(L,T) uint8 -> base64 of pairs (value, times), row after row; longer runs are split."""
    if parts is None:
        return None
    cells = parts.ravel()
    first = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
    pairs = bytearray()
    for value, times in zip(cells[first], np.diff(np.append(first, cells.size)), strict=True):
        for done in range(0, times, LAST):
            pairs += bytes((value, min(times - done, LAST)))
    return base64.b64encode(pairs).decode()
