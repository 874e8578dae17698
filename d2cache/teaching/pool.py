"""The training rows made so far, on the device, and batches of them."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PARTS = 2  # of a batch; the rows of a part have one length


class Part(NamedTuple):
    """Rows of one length: token ids and kinds, (B,L) int64 each."""

    tokens: Tensor
    what: Tensor


class Pool:
    """The rows made so far; workers keep adding files of them.

    One line of tokens holds all rows, whatever their lengths: no row is padded for the batch's
    sake, so that the model never sees a padding that decoding does not have.
    """

    def __init__(self, device: torch.device, folder: str, alive: Callable[[], bool] = lambda: True):
        """alive: whether workers still add rows."""
        self.device, self.folder, self.alive = device, Path(folder), alive
        self.line = torch.zeros(2, 0, dtype=torch.int16, device=device)
        self.end = 0  # where the next rows go
        self.rows: dict[int, list[int]] = defaultdict(list)  # length -> where its rows start

    def wait(self) -> None:
        """Until there are rows; ValueError if nobody makes any."""
        while not self.rows:
            if not self.alive():
                raise ValueError("the processes that make rows have ended; their messages say why")
            time.sleep(0.2)
            self.take_in()

    def take_in(self) -> None:
        """Move the rows that the workers have written into the pool."""
        for path in sorted(self.folder.glob("*[0-9].npy")):
            self.add(np.load(path, allow_pickle=False))
            path.unlink()

    def add(self, chunk: np.ndarray) -> None:
        """Add rows, (3, N) int16 as `data.chunk` makes them."""
        size = chunk.shape[1]
        if self.end + size > self.line.shape[1]:
            room = max(2 * self.line.shape[1], self.end + size)
            line = torch.zeros(2, room, dtype=torch.int16, device=self.device)
            line[:, : self.end] = self.line[:, : self.end]
            self.line = line
        self.line[:, self.end : self.end + size] = torch.from_numpy(chunk[:2]).to(self.device)
        starts = np.flatnonzero(chunk[2])
        for start, length in zip(starts, np.diff(np.append(starts, size)), strict=True):
            self.rows[int(length)].append(self.end + int(start))
        self.end += size

    def tokens(self) -> int:
        """Tokens of the rows that can be drawn."""
        return sum(length * len(starts) for length, starts in self.rows.items())

    def batch(self, rng: random.Random, tokens: int) -> list[Part]:
        """`PARTS` parts of rows of one length each, of at most `tokens` tokens together.

        A length is drawn as often as its share of the tokens says.
        """
        lengths = list(self.rows)
        shares = [length * len(self.rows[length]) for length in lengths]
        return [
            self._part(rng, length, max(1, tokens // PARTS // length))
            for length in rng.choices(lengths, shares, k=PARTS)
        ]

    def _part(self, rng: random.Random, length: int, count: int) -> Part:
        starts = torch.tensor(rng.choices(self.rows[length], k=count), device=self.device)
        at = starts[:, None] + torch.arange(length, device=self.device)
        return Part(*self.line[:, at].long())
