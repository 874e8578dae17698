"""CachePolicy, the base class, which is "no cache", and KV, the store that policies use."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Canvas, Plan, Step, Why
from d2cache.model import Block, Model
from d2cache.registry import Registered
from d2cache.rows import Rows


class KV:
    """Keys (already rotated: positions never move) and values, (L,B,Hkv,T,D) each.

    ids (B,T) int64: the token id that layer 0 last saw at each position, -1 before the first.
    """

    def __init__(self, model: Model, batch: int, length: int):
        c = model.config
        shape = (c.layers, batch, c.kv_heads, length, c.head_width)
        self.k = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self.v = torch.zeros_like(self.k)
        self.ids = torch.full((batch, length), -1, device=model.device)

    def at(self, i: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layer i, (B,Hkv,T,D) each."""
        return self.k[i], self.v[i]

    def write(self, i: int, rows: Rows, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B,Hkv,R,D) of `rows`; -> all keys and values (B,Hkv,T,D)."""
        if rows.full:
            self.k[i].copy_(k)
            self.v[i].copy_(v)
        else:
            at = rows.index[:, None, :, None].expand_as(k)
            self.k[i].scatter_(2, at, k)
            self.v[i].scatter_(2, at, v)
        return self.at(i)


class CachePolicy(Registered):
    """Decides which rows are recomputed. The methods here recompute everything in every step.

    Subclass as a dataclass with a key; its fields are its knobs and its docstring's first line
    names the paper. State of a run is kept in attributes set by `begin`.
    """

    registry: ClassVar[dict[str, type]] = {}
    kind: ClassVar[str] = "policy"
    for_blocks: ClassVar[bool] = False  # made for answers in several blocks
    rollout: Tensor | None = None  # (B,T) column mass of the last step, if the policy computes it
    parts: Tensor | None = None  # (B,L,T) uint8 of `Part`, set by policies that decide by layer
    # Set by the class that defines `attend`: it only passes q, k, v and the rows' keys to the block
    # or to `ops.attention_map`, and returns the outputs, so a GPU may run all layers before it.
    attend_can_wait: ClassVar[bool] = True
    # Set by a policy whose `block` may send more rows than planned through the layers after one: a
    # GPU runs all layers by the base's `block` first, then asks once where to start again, see
    # `ElasticCache` and its `AttentionWatch` for the methods that this takes.
    restarts: ClassVar[bool] = False
    extra: Tensor | None = None  # (B,5) int64: work beside that of `parts`, see `Step`
    whole: bool = False  # set while `plan` is called for a step that must recompute every row

    def begin(self, model: Model, canvas: Canvas) -> None:
        """Called once before the first step: allocate what the run needs."""
        self.kv = KV(model, *canvas.tokens.shape)

    def plan(self, canvas: Canvas) -> Plan:
        """Which positions to predict and which rows to recompute on this canvas.

        Where `whole` is set, the plan is extended to all rows afterwards; a policy whose layers do
        not follow the plan must itself recompute every part of every row in this step.
        """
        why = canvas.own.to(torch.uint8) * int(Why.FULL)
        return Plan(predict=canvas.masked, refresh=canvas.own, why=why)

    def block(self, i: int, block: Block, x: Tensor, rows: Rows) -> Tensor:
        """Layer i on the rows: x (B,R,d) -> (B,R,d)."""
        self.enter(i, x, rows)
        x = x + self.attend(i, block, *self.project(i, block, x, rows), rows)
        return x + block.mlp(x)

    def enter(self, i: int, x: Tensor, rows: Rows) -> None:
        """Called before layer i with its input x (B,R,d)."""

    def project(self, i: int, block: Block, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Rows -> their q (B,H,R,D), and all keys and values (B,Hkv,T,D), the rows' updated."""
        if i > 0:
            q, k, v = block.qkv(x, rows.rope)
            return q, *self.kv.write(i, rows, k, v)
        self.renew(block, x, rows)
        return block.query(x, rows.rope), *self.kv.at(0)

    def renew(self, block: Block, x: Tensor, rows: Rows) -> None:
        """Recompute layer 0's K,V of the rows whose token id is new.

        They depend on id and position alone, so keeping them while the id stays is exact.
        """
        if rows.fresh.shape[1]:
            fresh = rows.take(rows.fresh)
            self.kv.write(0, fresh, *block.key_value(ops.rows_at(x, rows.fresh), fresh.rope))

    def attend(self, i: int, block: Block, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
        """q (B,H,R,D) over all keys and values (B,Hkv,T,D) -> (B,R,d)."""
        return block.attend(q, k, v, rows.keys)

    def observe(self, canvas: Canvas, step: Step) -> None:
        """Called after each step, with the canvas it left: prepare the next plan."""
