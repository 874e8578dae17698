"""Selections on (B,T) that planning a step needs: ranks, windows and lists, without a sort."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 1 << 13  # positions of a canvas; one program holds it


@triton.jit
def _select(
    score, eligible, out, length, k, p, FEW: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr
):
    # each position against all: which come before it by falling score, ties from the left
    base = tl.program_id(1) * length
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(score + base + at, at < length, 0.0)
    wanted = tl.load(eligible + base + at, at < length, 0) > 0
    before = tl.zeros((BLOCK,), tl.float32)
    rank = tl.zeros((BLOCK,), tl.int32)
    total = 0.0
    for start in range(0, length, PAIRS):
        other = start + tl.arange(0, PAIRS)
        counts = tl.load(eligible + base + other, other < length, 0) > 0
        theirs = tl.load(score + base + other, counts, -float("inf"))
        ahead = (theirs[None] > mine[:, None]) | (
            (theirs[None] == mine[:, None]) & (other[None] < at[:, None])
        )
        ahead = ahead & counts[None]
        rank += tl.sum(ahead.to(tl.int32), 1)
        if not FEW:
            mass = tl.where(counts, theirs, 0.0).to(tl.float32)
            total += tl.sum(mass, 0)
            before += tl.sum(tl.where(ahead, mass[None], 0.0), 1)
    if FEW:  # noqa: SIM108
        chosen = wanted & (rank < k) & (mine > -float("inf"))
    else:
        chosen = wanted & (before <= p * total)
    tl.store(out + base + at, chosen, at < length)


def _selected(score: Tensor, eligible: Tensor, k: int, p: float, few: bool) -> Tensor:
    score, eligible = score.contiguous(), eligible.expand(score.shape).contiguous()
    out = torch.empty_like(eligible)
    batch, length = score.shape
    block = 16 if length <= 2048 else 32
    _select[(triton.cdiv(length, block), batch)](
        score,
        eligible.view(torch.uint8),
        out.view(torch.uint8),
        length,
        k,
        p,
        FEW=few,
        BLOCK=block,
        PAIRS=256,
        num_warps=4,
    )
    return out


def top_k_mask(score: Tensor, eligible: Tensor, k: int) -> Tensor:
    """`ops.top_k_mask`: (B,T) bool, the k highest eligible scores, ties to the left."""
    return _selected(score, eligible, k, 0.0, True)


def nucleus(mass: Tensor, candidates: Tensor, p: float) -> Tensor:
    """`ops.nucleus`: (B,T) bool, the smallest set of more than a share p of the mass."""
    if p <= 0:
        return torch.zeros_like(candidates)
    if p >= 1:
        return candidates
    return _selected(mass, candidates, 0, p, False)


@triton.jit
def _compact(value, out, mask, count, LENGTH: tl.constexpr, COUNT: tl.constexpr):
    # the values (they never fall) where the mask is set, packed together; filled up with the first
    # of them, or with 0 where there is none
    rank, many = tl.cumsum(mask, 0) - 1, tl.sum(mask, 0)
    tl.store(out + rank, value.to(tl.int64), (mask > 0) & (rank < count))
    first = tl.min(tl.where(mask > 0, value, LENGTH), 0)
    rest = tl.zeros((COUNT,), tl.int64) + tl.where(many > 0, first, 0)
    slot = tl.arange(0, COUNT)
    tl.store(out + slot, rest, (slot >= many) & (slot < count))


@triton.jit
def _mark_valid(mask, valid, count, COUNT: tl.constexpr):
    slot = tl.arange(0, COUNT)
    tl.store(valid + slot, (slot < tl.sum(mask, 0)).to(tl.uint8), slot < count)


@triton.jit
def _indices(mask, index, valid, length, count, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    wanted = tl.load(mask + row * length + at, at < length, 0).to(tl.int32)
    _compact(at, index + row * count, wanted, count, BLOCK, COUNT)
    _mark_valid(wanted, valid + row * count, count, COUNT)


def indices(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`ops.indices`: positions (B,count) of a mask (B,T), and which of them count."""
    mask = mask.contiguous()
    batch, length = mask.shape
    index = torch.empty(batch, count, dtype=torch.int64, device=mask.device)
    valid = torch.empty(batch, count, dtype=torch.bool, device=mask.device)
    _indices[(batch,)](
        mask.view(torch.uint8),
        index,
        valid.view(torch.uint8),
        length,
        count,
        BLOCK=triton.next_power_of_2(length),
        COUNT=triton.next_power_of_2(count),
        num_warps=4 if length <= 1024 else 8,
    )
    return index, valid


@triton.jit
def _list_rows(
    wanted,
    source,
    start,
    index,
    valid,
    position,
    head,
    place,
    length,
    rows,
    heads,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    begin = tl.load(start + row)
    wants = tl.load(wanted + row * length + at, at < length, 0).to(tl.int32)
    leads = tl.load(source + row * length + at, at < length, 0).to(tl.int32)
    _compact(at, index + row * rows, wants, rows, BLOCK, ROWS)
    _compact(tl.maximum(at - begin, 0), position + row * rows, wants, rows, BLOCK, ROWS)
    _mark_valid(wants, valid + row * rows, rows, ROWS)
    _compact(tl.cumsum(wants, 0) - 1, head + row * heads, leads, heads, BLOCK, HEADS)
    _compact(at, place + row * heads, leads, heads, BLOCK, HEADS)


def list_rows(wanted: Tensor, source: Tensor, start: Tensor, rows: int, heads: int) -> tuple:
    """`ops.list_rows`, for sources that are wanted, as one kernel."""
    batch, length = wanted.shape
    index, position = torch.empty(2, batch, rows, dtype=torch.int64, device=wanted.device)
    head, place = torch.empty(2, batch, heads, dtype=torch.int64, device=wanted.device)
    valid = torch.empty(batch, rows, dtype=torch.bool, device=wanted.device)
    _list_rows[(batch,)](
        *(t.contiguous().view(torch.uint8) for t in (wanted, source)),
        start,
        index,
        valid.view(torch.uint8),
        position,
        head,
        place,
        length,
        rows,
        heads,
        BLOCK=triton.next_power_of_2(length),
        ROWS=triton.next_power_of_2(rows),
        HEADS=triton.next_power_of_2(heads),
        num_warps=4 if length <= 1024 else 8,
    )
    return index, valid, position, head, place


@triton.jit
def _density(known, window, out, length, radius, BLOCK: tl.constexpr, LAGS: tl.constexpr):
    base = tl.program_id(1) * length
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, 2 * radius + 1, LAGS):
        lag = start + tl.arange(0, LAGS)
        other = at[:, None] + lag[None] - radius
        inside = (other >= 0) & (other < length) & (lag <= 2 * radius)[None]
        here = tl.load(known + base + other, inside, 0).to(tl.float64)
        share = tl.load(window + lag, lag <= 2 * radius, 0.0)
        total += tl.sum(here * share[None], 1)
    tl.store(out + base + at, total.to(tl.float32), at < length)


GAUSSIANS: dict[tuple, Tensor] = {}  # never freed: graphs read them at these addresses


def _gaussian(sigma: float, radius: int, device: torch.device) -> Tensor:
    key = sigma, radius, device
    if key in GAUSSIANS:
        return GAUSSIANS[key]
    lag = torch.arange(-radius, radius + 1, device=device, dtype=torch.float64)
    window = torch.exp(-((lag / sigma) ** 2) / 2)
    window = window / window.sum()
    # a tensor made while a graph is captured belongs to that graph
    if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        GAUSSIANS[key] = window
    return window


def certainty_density(known: Tensor, sigma: float) -> Tensor:
    """`ops.certainty_density` for one sigma: (B,T) bool -> (B,T) float32."""
    known, radius = known.contiguous(), math.ceil(6 * sigma)
    out = torch.empty(known.shape, dtype=torch.float32, device=known.device)
    batch, length = known.shape
    _density[(triton.cdiv(length, 32), batch)](
        known.view(torch.uint8),
        _gaussian(sigma, radius, known.device),
        out,
        length,
        radius,
        BLOCK=32,
        LAGS=64,
        num_warps=4,
    )
    return out


@triton.jit
def _minus_cosine(
    new,
    old,
    eligible,
    out,
    heads,
    length,
    b_stride,
    h_stride,
    ob_stride,
    oh_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, D)
    counts = tl.load(eligible + batch * length + at, at < length, 0) > 0
    place = at[:, None] * D + lane[None]
    product = tl.zeros((BLOCK,), tl.float32)
    mine, theirs, moved = product, product, product
    for head in range(heads):
        a = tl.load(new + batch * b_stride + head * h_stride + place, counts[:, None], 0.0)
        b = tl.load(old + batch * ob_stride + head * oh_stride + place, counts[:, None], 0.0)
        moved += tl.sum((a != b).to(tl.float32), 1)
        a, b = a.to(tl.float32), b.to(tl.float32)
        product += tl.sum(a * b, 1)
        mine += tl.sum(a * a, 1)
        theirs += tl.sum(b * b, 1)
    scale = tl.maximum(tl.sqrt(mine), 1e-8) * tl.maximum(tl.sqrt(theirs), 1e-8)
    tl.store(out + batch * length + at, tl.where(moved > 0, -product / scale, -2.0), at < length)


def moved_most(new: Tensor, old: Tensor, eligible: Tensor, k: int) -> Tensor:
    """`ops.moved_most`: (B,T) bool, the k eligible rows of (B,Hkv,T,D) that moved most."""
    batch, heads, length, width = new.shape
    score = torch.empty(batch, length, dtype=torch.float32, device=new.device)
    _minus_cosine[(triton.cdiv(length, 4), batch)](
        new,
        old,
        eligible.contiguous().view(torch.uint8),
        score,
        heads,
        length,
        new.stride(0),
        new.stride(1),
        old.stride(0),
        old.stride(1),
        D=width,
        BLOCK=4,
        num_warps=4,
    )
    return top_k_mask(score, eligible, k)


@triton.jit
def _canvas_masks(
    tokens,
    start,
    masked,
    known,
    block,
    eligible,
    live,
    length,
    prompt,
    size,
    mask_id,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < length
    blank = (tl.load(tokens + row * length + at, inside, 0) == mask_id) & (at >= prompt) & inside
    first = tl.min(tl.where(blank, at, length), 0)
    any_left = first < length
    # a row without masks has the block of position 0 as its current block, as in the plain rule
    first = tl.where(any_left, first, 0) - prompt
    here = at - prompt
    # rounded down, below 0 too
    opened = tl.where(first >= 0, first // size, -((-first + size - 1) // size))
    index = tl.where(here >= 0, here // size, -((-here + size - 1) // size))
    within = index == opened
    own = at >= tl.load(start + row)
    line = row * length + at
    tl.store(masked + line, blank.to(tl.uint8), inside)
    tl.store(known + line, (own & (blank == 0)).to(tl.uint8), inside)
    tl.store(block + line, within.to(tl.uint8), inside)
    tl.store(eligible + line, (blank & within & any_left).to(tl.uint8), inside)
    tl.store(live + row, any_left.to(tl.uint8))


def canvas_masks(tokens: Tensor, start: Tensor, prompt: int, size: int, mask_id: int) -> tuple:
    """masked, known, block, eligible (B,T) and live (B,) of a `Canvas`, bool each."""
    batch, length = tokens.shape
    planes = torch.empty(4, batch, length, dtype=torch.bool, device=tokens.device)
    live = torch.empty(batch, dtype=torch.bool, device=tokens.device)
    _canvas_masks[(batch,)](
        tokens,
        start,
        *planes.view(torch.uint8),
        live.view(torch.uint8),
        length,
        prompt,
        size,
        mask_id,
        BLOCK=triton.next_power_of_2(length),
        num_warps=4 if length <= 1024 else 8,
    )
    return *planes, live


@triton.jit
def _masks_of(
    tokens,
    ids,
    predict,
    refresh,
    live,
    stuck,
    wanted,
    source,
    fresh,
    counts,
    batch,
    length,
    shift,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < length
    most, least, heads, changed, left = 0, length, 0, 0, 0
    for row in range(batch):
        line = row * length + at
        alive = tl.load(live + row).to(tl.int32)
        right = row * length + (at + shift) % length
        leads = (tl.load(predict + right, inside, 0) > 0) & (alive > 0)
        wants = ((tl.load(refresh + line, inside, 0) > 0) & (alive > 0)) | leads
        new = tl.load(tokens + line, inside, 0) != tl.load(ids + line, inside, 0)
        new = wants & new
        tl.store(wanted + line, wants.to(tl.uint8), inside)
        tl.store(source + line, leads.to(tl.uint8), inside)
        tl.store(fresh + line, new.to(tl.uint8), inside)
        many = tl.sum(wants.to(tl.int32), 0)
        most, least = tl.maximum(most, many), tl.minimum(least, many)
        heads = tl.maximum(heads, tl.sum(leads.to(tl.int32), 0))
        changed = tl.maximum(changed, tl.sum(new.to(tl.int32), 0))
        left += alive
    tl.store(counts, most.to(tl.int64))
    tl.store(counts + 1, least.to(tl.int64))
    tl.store(counts + 2, heads.to(tl.int64))
    tl.store(counts + 3, changed.to(tl.int64))
    tl.store(counts + 4, left.to(tl.int64))
    tl.store(counts + 5, tl.load(stuck).to(tl.int64))


def masks_of(tokens, ids, predict, refresh, live, stuck, shift: int) -> tuple[tuple, Tensor]:
    """`work.masks_of` as one kernel: wanted, source, fresh (B,T) bool, and counts (6,)."""
    batch, length = tokens.shape
    planes = torch.empty(3, batch, length, dtype=torch.bool, device=tokens.device)
    counts = torch.empty(6, dtype=torch.int64, device=tokens.device)
    _masks_of[(1,)](
        tokens,
        ids,
        *(t.contiguous().view(torch.uint8) for t in (predict, refresh, live)),
        stuck.view(torch.uint8),
        *planes.view(torch.uint8),
        counts,
        batch,
        length,
        shift,
        BLOCK=triton.next_power_of_2(length),
        num_warps=4 if length <= 1024 else 8,
    )
    return tuple(planes), counts


@triton.jit
def _search_window(
    masked, block, at, size, out, length, k, SIZES: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    where = tl.arange(0, BLOCK)
    inside = where < length
    line = row * length + where
    here = tl.load(at + where, inside, 0)
    end = tl.load(at + length - 1)
    blank = tl.load(masked + line, inside, 0).to(tl.int32)
    opened = (tl.load(block + line, inside, 0) > 0) & inside
    last = tl.min(tl.where((tl.cumsum(blank, 0) >= k) & inside, here, end), 0)
    wide = size
    if SIZES:
        wide = tl.load(size + row)
    # rounded down, below 0 too
    index = tl.where(last >= 0, last // wide, -((-last + wide - 1) // wide))
    start = tl.min(tl.where(opened, here, end), 0)
    chosen = (blank > 0) & (here >= start) & (here < (index + 1) * wide)
    tl.store(out + line, chosen.to(tl.uint8), inside)


def search_window(masked: Tensor, inside: Tensor, at: Tensor, size, k: int) -> Tensor:
    """`ops.search_window`: (B,T) bool, masked positions where d2Cache searches for the next."""
    batch, length = masked.shape
    out = torch.empty_like(masked)
    sizes = isinstance(size, Tensor)
    _search_window[(batch,)](
        masked.contiguous().view(torch.uint8),
        inside.contiguous().view(torch.uint8),
        at,
        size.contiguous() if sizes else size,
        out.view(torch.uint8),
        length,
        k,
        SIZES=sizes,
        BLOCK=triton.next_power_of_2(length),
        num_warps=4 if length <= 1024 else 8,
    )
    return out
