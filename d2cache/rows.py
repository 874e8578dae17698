"""Rows: the positions that a step sends through the layers; Part: what a layer did for one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag

import torch
from torch import Tensor

from d2cache import ops

NO_ROPE = torch.empty(0), torch.empty(0)


class Part(IntFlag):
    """What a layer computed for a row, under policies that decide layer by layer."""

    KEY = 1
    VALUE = 2
    ATTENTION = 4  # the attention output, query included
    MLP = 8  # the MLP output: the row went through the whole layer
    ALL = 15
    EVICTED = 16  # its K,V were left out of attention


@dataclass(frozen=True)
class Rows:
    """A plan as indices: the rows that go through the layers.

    index (B,R) int64 canvas positions; a batch row with fewer is filled up by repeating a wanted
    position (writing the same K,V twice is exact), and `valid` (B,R) bool counts each once.
    position (B,R): index counted from the batch row's own first token. head (B,Q): which of the R
    rows predict; target (B,Q): the canvas position each predicts. keys (B,T) bool or None: real
    keys, not padding. full: all T positions, in order. fresh (B,F): which of the R rows hold a
    token id that layer 0 has not seen at their position. wanted, new (B,T) bool: the rows, and the
    fresh rows among them, on the canvas. rope: cos and sin of the rows, set by `Model.forward`.
    """

    index: Tensor
    valid: Tensor
    position: Tensor
    head: Tensor
    target: Tensor
    keys: Tensor | None
    full: bool
    fresh: Tensor
    wanted: Tensor
    new: Tensor
    rope: tuple[Tensor, Tensor] = NO_ROPE

    def take(self, at: Tensor) -> Rows:
        """The rows at `at` (B,N), indices into these R, as `Rows`; none of them fresh."""
        cos, sin = (ops.rows_at(t[:, 0], at)[:, None] for t in self.rope)
        index = self.index.gather(1, at)
        return replace(self, index=index, full=False, rope=(cos, sin), fresh=at[:, :0])

    def parts(self, i: int) -> Tensor:
        """(B,T) uint8 of `Part`: what sending these rows through the whole of layer i computes."""
        keys = self.new if i == 0 else self.wanted
        through = self.wanted * int(Part.ATTENTION | Part.MLP)
        return (through + keys * int(Part.KEY | Part.VALUE)).byte()
