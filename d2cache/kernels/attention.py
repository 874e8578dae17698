"""Attention of few rows, and what rollout takes from it, without a map in memory.

`attention` keeps the log of each row's sum (LSE). With it any weight can be computed again from its
query and key, so the head-averaged maps of all layers are never written: `_maps_among_rows` makes
the small part that a sweep over the layers needs (rows against rows), `_column_sums` the column
sums that it ends in. Letters as in model.py: B batch, H heads, R rows, T positions, D head width,
L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634


@triton.jit
def _attention(
    q,
    k,
    v,
    keys,
    out,
    lse,
    scale,
    heads,
    group,
    rows,
    length,
    chunk,
    q_b,
    q_h,
    q_r,
    k_b,
    k_h,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    MASKED: tl.constexpr,
):
    # one block of rows of one head over one chunk of the keys
    row = tl.program_id(0) * M + tl.arange(0, M)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    part = tl.program_id(2)
    lane = tl.arange(0, D)
    inside = row < rows
    query = tl.load(
        q + batch.to(tl.int64) * q_b + head * q_h + row[:, None] * q_r + lane[None],
        inside[:, None],
        0.0,
    )
    base = batch.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    top = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    for start in range(part * chunk, tl.minimum((part + 1) * chunk, length), N):
        at = start + tl.arange(0, N)
        there = at < length
        key = tl.load(k + base + at[:, None] * D + lane[None], there[:, None], 0.0)
        score = tl.dot(query, key.T) * scale
        if MASKED:
            there = there & (tl.load(keys + batch * length + at, there, 0) > 0)
        score = tl.where(there[None], score, -float("inf"))
        high = tl.maximum(top, tl.max(score, 1))
        safe = tl.where(high == -float("inf"), 0.0, high)  # a chunk may hold no key at all
        weight = tl.exp2(score - safe[:, None])
        shrink = tl.exp2(top - safe)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(v + base + at[:, None] * D + lane[None], (at < length)[:, None], 0.0)
        acc = acc * shrink[:, None] + tl.dot(weight.to(value.dtype), value)
        top = high
    empty = total == 0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    line = ((part * tl.num_programs(1) + tl.program_id(1)) * rows + row).to(tl.int64)
    tl.store(lse + line, tl.where(empty, -float("inf"), top + tl.log2(total)), inside)
    if tl.num_programs(2) == 1:  # straight into (B,R,H,D)
        line = (batch * rows + row).to(tl.int64) * heads + head
    tl.store(out + line[:, None] * D + lane[None], acc.to(out.dtype.element_ty), inside[:, None])


@triton.jit
def _merge_chunks(
    parts,
    logs,
    out,
    lse,
    heads,
    rows,
    lines,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    LINES: tl.constexpr,
):
    # the chunks' outputs of some (batch, head, row), weighted by their sums
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    lane, inside = tl.arange(0, D), line < lines
    top = tl.load(logs + line, inside, 0.0)
    for part in tl.static_range(1, PARTS):
        top = tl.maximum(top, tl.load(logs + part * lines + line, inside, 0.0))
    total = tl.zeros((LINES,), tl.float32)
    acc = tl.zeros((LINES, D), tl.float32)
    for part in tl.static_range(PARTS):
        at = (part * lines + line).to(tl.int64)
        share = tl.exp2(tl.load(logs + at, inside, 0.0) - top)
        total += share
        acc += share[:, None] * tl.load(parts + at[:, None] * D + lane[None], inside[:, None], 0.0)
    head, row = line // rows, line % rows
    place = ((head // heads * rows + row) * heads + head % heads).to(tl.int64) * D
    value = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] + lane[None], value, inside[:, None])
    tl.store(lse + line, top + tl.log2(total), inside)


@dataclass
class Weights:
    """The attention weights of one layer, not computed yet: q (B,H,R,D), k (B,Hkv,T,D), lse (B,H,R)
    float32 in powers of two, keys (B,T) bool or None."""

    q: Tensor
    k: Tensor
    lse: Tensor
    keys: Tensor | None


def launch_of(batch: int, heads: int, rows: int, length: int) -> tuple[int, ...]:
    """Rows per block, keys per turn, chunks of keys (enough to fill the chip), warps and stages."""
    m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    blocks = triton.cdiv(rows, m) * batch * heads
    parts = 1
    while parts < 8 and blocks * parts < 128 and length >= 512 * parts:
        parts *= 2
    return m, 128 if m == 64 else 64, parts, 4, 3


def attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, launch=None, lse: Tensor | None = None
) -> tuple[Tensor, Weights]:
    """-> outputs (B,H,R,D), laid out as (B,R,H,D), and the Weights. Sums in float32.

    launch: as `launch_of` makes it. lse: where to put the sums (B,H,R), if given.
    """
    batch, heads, rows, width = q.shape
    kv_heads, length = k.shape[1:3]
    m, n, parts, warps, stages = launch or launch_of(batch, heads, rows, length)
    chunk = triton.cdiv(triton.cdiv(length, parts), n) * n
    out = q.new_empty(batch, rows, heads, width)
    if lse is None:
        lse = q.new_empty(batch, heads, rows, dtype=torch.float32)
    some, logs = out, lse
    if parts > 1:
        some = q.new_empty(parts, batch, heads, rows, width, dtype=torch.float32)
        logs = q.new_empty(parts, batch, heads, rows, dtype=torch.float32)
    assert k.stride()[2:] == (width, 1) and k.stride() == v.stride() and q.stride(3) == 1
    _attention[(triton.cdiv(rows, m), batch * heads, parts)](
        q,
        k,
        v,
        lse if keys is None else keys.view(torch.uint8),
        some,
        logs,
        width**-0.5 * LOG2E,
        heads,
        heads // kv_heads,
        rows,
        length,
        chunk,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        k.stride(0),
        k.stride(1),
        M=m,
        N=n,
        D=width,
        MASKED=keys is not None,
        num_warps=warps,
        num_stages=stages,
    )
    if parts > 1:
        lines = batch * heads * rows
        _merge_chunks[(triton.cdiv(lines, 8),)](
            some, logs, out, lse, heads, rows, lines, PARTS=parts, D=width, LINES=8, num_warps=4
        )
    return out.transpose(1, 2), Weights(q, k, lse, keys)


# Several layers at once: their q and lse are equally spaced in memory.


@triton.jit
def _maps_among_rows(
    q,
    k,
    lse,
    index,
    out,
    scale,
    heads,
    group,
    rows,
    q_l,
    q_h,
    q_r,
    k_l,
    k_h,
    lse_l,
    batch,
    q_b,
    k_b,
    M: tl.constexpr,
    D: tl.constexpr,
):
    row = tl.program_id(0) * M + tl.arange(0, M)
    col = tl.program_id(1) * M + tl.arange(0, M)
    layer, b = tl.program_id(2) // batch, tl.program_id(2) % batch
    lane = tl.arange(0, D)
    at = tl.load(index + b * rows + col, col < rows, 0)
    q += layer.to(tl.int64) * q_l + b.to(tl.int64) * q_b
    k += layer.to(tl.int64) * k_l + b.to(tl.int64) * k_b
    lse += layer.to(tl.int64) * lse_l + b * heads * rows
    acc = tl.zeros((M, M), tl.float32)
    for head in range(heads):
        query = tl.load(
            q + head * q_h + row[:, None] * q_r + lane[None], (row < rows)[:, None], 0.0
        )
        key = tl.load(k + (head // group) * k_h + at[:, None] * D + lane[None])
        log = tl.load(lse + head * rows + row, row < rows, 0.0)
        acc += tl.exp2(tl.dot(query, key.T) * scale - log[:, None])
    place = ((layer * batch + b) * rows + row[:, None]).to(tl.int64) * rows + col[None]
    inside = (row < rows)[:, None] & (col < rows)[None]
    tl.store(out + place, (acc / heads).to(out.dtype.element_ty), inside)


@triton.jit
def _split_float(x, like, W: tl.constexpr):
    # x (N,) float32 as rows 0, 1, 2 of (16,N) in a narrow type: their sum is x, to its last bits
    line = tl.arange(0, 16)[:, None]
    high = x.to(like.dtype)
    rest = x - high.to(tl.float32)
    low = rest.to(like.dtype)
    last = (rest - low.to(tl.float32)).to(like.dtype)
    zero = tl.zeros((16, W), like.dtype)
    return tl.where(
        line == 0, high[None], tl.where(line == 1, low[None], tl.where(line == 2, last[None], zero))
    )


@triton.jit
def _sweep(
    maps, valid, index, half, out, rows, length, layers, batch, R: tl.constexpr, W: tl.constexpr
):
    # one program per row of the batch; mass of the rows alone, from the last layer down
    b = tl.program_id(0)
    row = tl.arange(0, R)
    inside = row < rows
    counts = tl.load(valid + b * rows + row, inside, 0).to(tl.float32) / 2
    mass = inside.to(tl.float32)
    given = tl.zeros((R,), tl.float32)
    for turn in range(layers):
        line = ((layers - 1 - turn) * batch + b).to(tl.int64)
        give = mass * counts
        given += give
        tl.store(half + line * rows + row, give, inside)
        base = maps + line * rows * rows
        if W == R:
            weight = tl.load(
                base + row[:, None] * rows + row[None], inside[:, None] & inside[None], 0.0
            )
            got = tl.dot(_split_float(give, weight, W), weight, out_dtype=tl.float32)
        else:  # too many rows at once: in parts, and what each gives is read again
            tl.debug_barrier()
            got = tl.zeros((16, R), tl.float32)
            for start in range(0, rows, W):
                part = start + tl.arange(0, W)
                weight = tl.load(
                    base + part[:, None] * rows + row[None],
                    (part < rows)[:, None] & inside[None],
                    0.0,
                )
                some = tl.load(half + line * rows + part, part < rows, 0.0)
                got = tl.dot(_split_float(some, weight, W), weight, got)
        mass = mass - give + tl.sum(got, 0)
    at = tl.load(index + b * rows + row, inside, 0)
    tl.atomic_add(out + b * length + at, -given, inside & (counts > 0))


@triton.jit
def _column_sums(
    q,
    k,
    lse,
    keys,
    half,
    out,
    scale,
    heads,
    group,
    per,
    rows,
    length,
    q_l,
    q_h,
    q_r,
    k_l,
    k_h,
    lse_l,
    batch,
    q_b,
    k_b,
    out_l,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    MASKED: tl.constexpr,
):
    at = tl.program_id(0) * N + tl.arange(0, N)
    layer, b = tl.program_id(1) // batch, tl.program_id(1) % batch
    lane, there = tl.arange(0, D), at < length
    q += layer.to(tl.int64) * q_l + b.to(tl.int64) * q_b
    k += layer.to(tl.int64) * k_l + b.to(tl.int64) * k_b
    lse += layer.to(tl.int64) * lse_l + b * heads * rows
    half += (layer * batch + b) * rows
    acc = tl.zeros((M, N), tl.float32)
    first = tl.program_id(2) * per
    for head in range(first, tl.minimum(first + per, heads)):
        key = tl.load(k + (head // group) * k_h + at[:, None] * D + lane[None], there[:, None], 0.0)
        for start in range(0, rows, M):
            row = start + tl.arange(0, M)
            inside = row < rows
            query = tl.load(q + head * q_h + row[:, None] * q_r + lane[None], inside[:, None], 0.0)
            # what the row gives is added to the exponent: one product less per weight
            log = tl.load(lse + head * rows + row, inside, 0.0)
            give = tl.log2(tl.load(half + row, inside, 0.0)) - log
            acc += tl.exp2(tl.dot(query, key.T) * scale + give[:, None])
    if MASKED:
        there = there & (tl.load(keys + b * length + at, there, 0) > 0)
    out += layer.to(tl.int64) * out_l + b * length
    tl.atomic_add(out + at, tl.sum(acc, 0) / heads, there)


MOST_ROWS = 512  # of a sweep, which is one program


def rollout(weights: list[Weights], index: Tensor, valid: Tensor, length: int) -> Tensor:
    """`ops.rollout_mass` of weights that were never written: (B,T) float32.

    q and lse of the layers must be equally spaced in memory, and so must the keys.
    """
    first, layers = weights[0], len(weights)
    (batch, heads, rows, width), kv_heads = first.q.shape, first.k.shape[1]
    maps = first.q.new_empty(layers, batch, rows, rows)
    half = first.lse.new_empty(layers, batch, rows)
    scale, group = width**-0.5 * LOG2E, heads // kv_heads
    m = 64 if rows > 32 else max(16, triton.next_power_of_2(rows))
    strides = _strides(weights)
    tiles = triton.cdiv(rows, m)
    _maps_among_rows[(tiles, tiles, layers * batch)](
        first.q,
        first.k,
        first.lse,
        index,
        maps,
        scale,
        heads,
        group,
        rows,
        **strides,
        M=m,
        D=width,
        num_warps=4,
        num_stages=3,
    )
    if first.keys is not None:
        maps *= first.keys.gather(1, index)[:, None]
    r = max(16, triton.next_power_of_2(rows))
    mass = torch.ones(batch, length, dtype=torch.float32, device=index.device)
    _sweep[(batch,)](
        maps,
        valid.view(torch.uint8),
        index,
        half,
        mass,
        rows,
        length,
        layers,
        batch,
        R=r,
        W=min(r, 128 if r <= 128 else 32),
        num_warps=4 if r <= 128 else 8,
        num_stages=3,
    )
    _add_column_sums(weights, half, mass)
    return mass


def column_mass(weights: list[Weights], counted: Tensor) -> Tensor:
    """`ops.column_mass` of weights that were never written: (N,B,T) float32.

    q, lse and keys as for `rollout`.
    """
    half = counted.to(torch.float32).expand(len(weights), -1, -1).contiguous()
    batch, length = len(counted), weights[0].k.shape[2]
    mass = torch.zeros(len(weights), batch, length, device=counted.device)
    _add_column_sums(weights, half, mass)
    return mass


def _add_column_sums(weights: list[Weights], given: Tensor, out: Tensor) -> None:
    """Add to out (B,T) or (L,B,T) the sums of head-averaged weights times what each row gives,
    (L,B,R) float32."""
    first, layers = weights[0], len(weights)
    (batch, heads, rows, width), (kv_heads, length) = first.q.shape, first.k.shape[1:3]
    m = 64 if rows > 32 else max(16, triton.next_power_of_2(rows))
    n, per = 128, 8
    _column_sums[(triton.cdiv(length, n), layers * batch, triton.cdiv(heads, per))](
        first.q,
        first.k,
        first.lse,
        first.lse if first.keys is None else first.keys.view(torch.uint8),
        given,
        out,
        width**-0.5 * LOG2E,
        heads,
        heads // kv_heads,
        per,
        rows,
        length,
        **_strides(weights),
        out_l=out.stride(0) if out.dim() == 3 else 0,
        M=m,
        N=n,
        D=width,
        MASKED=first.keys is not None,
        num_warps=4,
        num_stages=1 if length <= 1024 else 3,
    )


def _strides(weights: list[Weights]) -> dict[str, int]:
    """Of q, k and lse: of layers (_l), rows of the batch (_b), heads (_h) and rows (_r)."""
    first = weights[0]
    q_l, k_l, lse_l = (_spacing([getattr(w, name) for w in weights]) for name in ("q", "k", "lse"))
    return dict(
        q_l=q_l,
        q_h=first.q.stride(1),
        q_r=first.q.stride(2),
        k_l=k_l,
        k_h=first.k.stride(1),
        lse_l=lse_l,
        batch=len(first.q),
        q_b=first.q.stride(0),
        k_b=first.k.stride(0),
    )


def _spacing(tensors: list[Tensor]) -> int:
    """Elements between each tensor and the next in memory; ValueError where that varies."""
    if len(tensors) == 1:
        return 0
    size = tensors[0].element_size()
    gaps = {
        (b.data_ptr() - a.data_ptr()) // size for a, b in zip(tensors, tensors[1:], strict=False)
    }
    if len(gaps) > 1:
        raise ValueError(
            "the layers' tensors are not equally spaced in memory; allocate them as one tensor"
        )
    return gaps.pop()
