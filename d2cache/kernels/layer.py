"""What happens between a layer's matrix products, one kernel each: norm, rotation with K,V, SwiGLU;
and rows in 8 bits, for products with 8-bit weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2cache import ops


@triton.jit
def _add_norm(
    x,
    delta,
    weight,
    total,
    out,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row + at, inside, 0.0).to(tl.float32)
    if ADD:
        value += tl.load(delta + row + at, inside, 0.0).to(tl.float32)
        narrow = value.to(total.dtype.element_ty)  # the norm reads what the next layer reads
        tl.store(total + row + at, narrow, inside)
        value = narrow.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    gain = tl.load(weight + at, inside, 0.0).to(tl.float32)
    tl.store(out + row + at, (value * scale * gain).to(out.dtype.element_ty), inside)


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta and its RMS norm, both (..,d); without a delta x itself is the sum."""
    x = x.contiguous()
    out = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    width = x.shape[-1]
    _add_norm[(x.numel() // width,)](
        x,
        x if delta is None else delta.contiguous(),
        weight,
        total,
        out,
        width,
        eps,
        ADD=delta is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
    )
    return total, out


@triton.jit
def _rotate_write(
    qkv,
    cos,
    sin,
    index,
    k,
    v,
    rows,
    heads,
    kv_heads,
    row_stride,
    batch_stride,
    head_stride,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    row, batch = tl.program_id(0), tl.program_id(1)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, HALF)[None]
    line = (batch * rows + row).to(tl.int64)
    first = qkv + line * row_stride + head * (2 * HALF) + lane
    inside = head < heads + 2 * kv_heads
    a = tl.load(first, inside, 0.0)
    b = tl.load(first + HALF, inside, 0.0)
    c = tl.load(cos + line * HALF + lane).to(tl.float32)
    s = tl.load(sin + line * HALF + lane).to(tl.float32)
    af, bf = a.to(tl.float32), b.to(tl.float32)
    turned = head < heads + kv_heads
    a = tl.where(turned, (af * c - bf * s).to(a.dtype), a)
    b = tl.where(turned, (bf * c + af * s).to(b.dtype), b)
    query = head < heads
    tl.store(first, a, query)
    tl.store(first + HALF, b, query)
    at = tl.load(index + line)
    key = (head >= heads) & turned
    place = k + batch * batch_stride + (head - heads) * head_stride + at * (2 * HALF) + lane
    tl.store(place, a, key)
    tl.store(place + HALF, b, key)
    value = inside & (head >= heads + kv_heads)
    shifted = (head - heads - kv_heads) * head_stride
    place = v + batch * batch_stride + shifted + at * (2 * HALF) + lane
    tl.store(place, a, value)
    tl.store(place + HALF, b, value)


def rotate_write(qkv: Tensor, rope, index: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The projections qkv (B,R,(H+2Hkv)D) of rows `index` (B,R): q and k are rotated, k and v
    written into (B,Hkv,T,D) each; -> q (B,H,R,D), a view of qkv. rope: cos, sin (B,1,R,D/2)."""
    batch, rows, wide = qkv.shape
    half = k.shape[-1] // 2
    cos, sin = (t.contiguous() for t in rope)
    lines = wide // (2 * half)
    per = 16 if lines > 16 else triton.next_power_of_2(lines)
    _rotate_write[(rows, batch, triton.cdiv(lines, per))](
        qkv,
        cos,
        sin,
        index,
        k,
        v,
        rows,
        heads,
        k.shape[1],
        wide,
        k.stride(0),
        k.stride(1),
        HALF=half,
        HEADS=per,
        num_warps=4,
    )
    return qkv[..., : heads * 2 * half].unflatten(-1, (heads, -1)).transpose(1, 2)


@triton.jit
def _swiglu(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(x + row * 2 * width + at, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + at, inside, 0.0).to(tl.float32)
    gate = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + at, (gate * up).to(out.dtype.element_ty), inside)


def swiglu(x: Tensor) -> Tensor:
    """(..,2F), gate and up side by side -> silu(gate) * up (..,F)."""
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    lines = out.numel() // width
    _swiglu[(lines, triton.cdiv(width, 4096))](x, out, width, BLOCK=4096, num_warps=8)
    return out


@triton.jit
def _quantize_rows(x, out, scale, width, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * width + at, inside, 0.0).to(tl.float32)
    most = tl.maximum(tl.max(tl.abs(value), 0), 1e-30)
    value *= tl.div_rn(1.0, most) * LARGEST
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), inside)
    tl.store(scale + row, most * (1 / LARGEST))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x (..,d) -> values (..,d) float8_e4m3fn and scales (..,1) float32, as in `ops`."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    block = triton.next_power_of_2(x.shape[-1])
    _quantize_rows[(scale.numel(),)](
        x,
        out,
        scale,
        x.shape[-1],
        LARGEST=ops.FP8_LARGEST,
        BLOCK=block,
        num_warps=min(16, max(4, block // 1024)),
    )
    return out, scale
