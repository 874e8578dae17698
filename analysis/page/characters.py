"""What each token of a canvas shows, where several tokens are the bytes of one character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

BROKEN = "\ufffd"  # what a part of a character is decoded to
MOST_PARTS = 8  # tokens of one group of characters


def texts(
    ids: Sequence[int] | np.ndarray,
    text: Callable[[int], str],
    decode: Callable[[list[int]], str] | None = None,
) -> list[str]:
    """The text of each token. Of neighbours that only together are whole characters, the first has
    these and the others have "": joined, the texts are what was written.

    text: of one token; decode: of several, None where only single texts are known.
    """
    out = [text(int(one)) for one in ids]
    for at, own in enumerate(out):
        if decode is not None and BROKEN in own:
            whole, count = _completed([int(one) for one in ids[at : at + MOST_PARTS]], decode)
            if count:
                out[at : at + count] = [whole] + [""] * (count - 1)
    return out


def _completed(ids: list[int], decode: Callable[[list[int]], str]) -> tuple[str, int]:
    """The least number of tokens that are whole characters together, and those; 0: none are."""
    for count in range(2, len(ids) + 1):
        whole = decode(ids[:count])
        if BROKEN not in whole:
            return whole, count
    return "", 0
