"""Which positions of a training row are masked, and what each weighs in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from d2cache.teaching.data import ANSWER, CELL, EXAMPLE, GAP, PADDING

MOST_GAPS, LONGEST_GAP = 3, 10  # of a text with gaps


def draw_mask(what: Tensor, rng: torch.Generator) -> Tensor:
    """Positions to mask (B,L) bool for rows of `what` (B,L), as decoding leaves them.

    Rows with an answer in words are a mixture of three cases. 0.40: each answer position masked at
    one random rate (LLaDA's forward process), and the padding too or, in half of them, as a whole
    so that it cannot reveal the answer's length. 0.25: the whole answer and padding masked, where
    decoding starts. 0.35: a written start with a ragged edge and nothing after it (except a few
    stray tokens in some rows, or a written tail of padding), where decoding is half-way.

    Boards are written in any order: 0.85 at one random rate, 0.15 masked as a whole. Texts with
    gaps: one to three stretches, masked as a whole or in part.
    """
    b, length = what.shape
    device = what.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=rng)

    case, noise = uniform(b, 1), uniform(b, length)
    answer, padding = (what == ANSWER) | (what == CELL), what == PADDING
    rate = (torch.arange(b, device=device)[:, None] + uniform(b, 1)) / b * 0.98 + 0.02
    rate = rate[torch.randperm(b, device=device, generator=rng)]
    scattered = noise < rate
    scattered = scattered | (padding & (uniform(b, 1) < 0.5))

    place = answer.cumsum(1) - 1
    size = answer.sum(1, keepdim=True)
    edge = (uniform(b, 1) * (size + 1)).floor()
    ragged = (place >= edge - (uniform(b, 1) * 12).floor()) & (noise < uniform(b, 1))
    strays = noise < uniform(b, 1) * 0.4 * (uniform(b, 1) < 0.4)
    half_way = ragged | ((place >= edge) & ~strays)
    column = torch.arange(length, device=device)
    first_padding = (what != PADDING).sum(1, keepdim=True)
    tail = first_padding + uniform(b, 1) * (length - first_padding)
    written_tail = padding & (column >= tail) & (uniform(b, 1) < 0.2)
    half_way = torch.where(padding, ~written_tail, half_way)

    board = (what == CELL).any(1, keepdim=True)
    at_random = case < torch.where(board, 0.85, 0.40)
    whole = board | (case < 0.65)
    mask = torch.where(at_random, scattered, whole | half_way) & (answer | padding)
    # solved examples are learned from as well, in half of the rows that have them
    example = (what == EXAMPLE) & (uniform(b, 1) < 0.5) & (uniform(b, length) < uniform(b, 1))
    mask = mask | example | draw_gaps(what == GAP, rng)
    # a row without any mask would have no loss: mask its last answer position
    return mask | ((place == size - 1) & answer & ~mask.any(1, keepdim=True))


def draw_gaps(text: Tensor, rng: torch.Generator) -> Tensor:
    """(B,L) bool: one to three stretches of each row's `text` (B,L) bool, which is its start or
    nothing; in half of the rows some of their positions are written already."""
    b, length = text.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=text.device, generator=rng)

    size = text.sum(1)[:, None, None]
    first = (uniform(b, MOST_GAPS, 1) * size).floor()
    wide = 1 + (uniform(b, MOST_GAPS, 1) * LONGEST_GAP).floor()
    column = torch.arange(length, device=text.device)
    inside = (column >= first) & (column < first + wide)
    count = 1 + (uniform(b, 1, 1) * MOST_GAPS).floor()
    gaps = (inside & (torch.arange(MOST_GAPS, device=text.device)[:, None] < count)).any(1) & text
    written = (uniform(b, length) < uniform(b, 1)) & (uniform(b, 1) < 0.5)
    left = gaps & ~written
    return torch.where(left.any(1, keepdim=True), left, gaps)


def loss_weights(what: Tensor, mask: Tensor) -> Tensor:
    """Weight of each masked position (B,L): rows weigh the same, padding and examples less."""
    weight = mask * (1.0 - 0.9 * (what == PADDING) - 0.5 * (what == EXAMPLE))
    return weight / weight.sum(1, keepdim=True) / what.shape[0]
