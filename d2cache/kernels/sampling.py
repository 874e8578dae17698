"""The likeliest tokens of each distribution and its log-sum-exp, in one pass over the logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _scan(
    logits,
    value,
    token,
    high,
    total,
    vocab,
    chunks,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(logits + row * vocab + at, at < vocab, -float("inf")).to(tl.float32)
    top = tl.max(score, 0)
    line = row * chunks + chunk
    tl.store(high + line, top)
    safe = tl.where(top == -float("inf"), 0.0, top)
    tl.store(total + line, tl.sum(tl.exp(score - safe), 0))
    for i in tl.static_range(K):
        best, where = tl.max(score, 0, return_indices=True)
        tl.store(value + line * K + i, best)
        tl.store(token + line * K + i, chunk * BLOCK + where)
        score = tl.where(at == chunk * BLOCK + where, -float("inf"), score)


@triton.jit
def _merge(
    value,
    token,
    high,
    total,
    top,
    ids,
    lse,
    chunks,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHUNKS)
    highs = tl.load(high + row * chunks + c, c < chunks, -float("inf"))
    most = tl.max(highs, 0)
    sums = tl.load(total + row * chunks + c, c < chunks, 0.0)
    tl.store(lse + row, most + tl.log(tl.sum(sums * tl.exp(highs - most), 0)))
    slot = tl.arange(0, SLOTS)
    inside = slot < chunks * K
    score = tl.load(value + row * chunks * K + slot, inside, -float("inf"))
    name = tl.load(token + row * chunks * K + slot, inside, 0)
    for i in tl.static_range(K):
        best, where = tl.max(score, 0, return_indices=True)
        tl.store(top + row * K + i, best)
        tl.store(ids + row * K + i, tl.sum(tl.where(slot == where, name, 0), 0).to(tl.int64))
        score = tl.where(slot == where, -float("inf"), score)


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """logits (B,Q,V) -> the k highest (B,Q,k) float32 with their ids, and log-sum-exp (B,Q)."""
    batch, rows, vocab = logits.shape
    lines, block = batch * rows, 4096
    chunks = triton.cdiv(vocab, block)
    make = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=logits.device)
    value, token = make(lines, chunks, k), make(lines, chunks, k, dtype=torch.int32)
    high, total = make(lines, chunks), make(lines, chunks)
    top, ids = make(batch, rows, k), make(batch, rows, k, dtype=torch.int64)
    lse = make(batch, rows)
    _scan[(lines, chunks)](
        logits.contiguous(), value, token, high, total, vocab, chunks, K=k, BLOCK=block, num_warps=8
    )
    _merge[(lines,)](
        value,
        token,
        high,
        total,
        top,
        ids,
        lse,
        chunks,
        K=k,
        CHUNKS=triton.next_power_of_2(chunks),
        SLOTS=triton.next_power_of_2(chunks * k),
        num_warps=4,
    )
    return top, ids, lse
