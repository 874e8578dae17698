"""The answer of each row of a batch, for a cache policy that treats prompt and answer apart.

Where there are masks among text, the prompt is what comes before a row's first mask, and the answer
everything from there on: given text there moves as the masks around it are written. Rows of a batch
then differ in where their answers begin. `answer`: (T,) bool, or (B,T) where they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from d2cache import ops


def put_values(
    stored: Tensor, value: Callable[[Tensor], Tensor], x: Tensor, answer: Tensor, begins: int
) -> None:
    """Replace the values (B,Hkv,T,D) of every row's answer by those of its inputs x (B,T,d).

    begins: where the first answer of the batch does.
    """
    kept, new = stored[:, :, begins:], value(x[:, begins:])
    if answer.dim() > 1:  # a row's answer may begin later
        new = torch.where(answer[:, None, begins:, None], new, kept)
    kept.copy_(new)


def moved_most(new: Tensor, old: Tensor, answer: Tensor, share: float, most: int) -> Tensor:
    """(B,T) bool: the share of each row's answer whose values moved most; most: of the longest."""
    k = most if answer.dim() == 1 else (share * answer.sum(1, keepdim=True).double()).long()
    return ops.moved_most(new, old, answer.expand(len(new), -1), k)


@contextmanager
def idle_kept(answer: Tensor, chosen: Tensor, *stores: Tensor) -> Iterator[None]:
    """A context that leaves the stores of a row of the batch as they are where nothing is chosen:
    `ops.indices` has a position for it too. Where the answers begin together, every row has one."""
    if answer.dim() == 1:
        yield
        return
    idle = ~chosen.any(1)
    before = [store[idle].clone() for store in stores]
    yield
    for store, kept in zip(stores, before, strict=True):
        store[idle] = kept
