"""dKV-Cache: decoded tokens are cached, one step late."""

from dataclasses import dataclass

import torch

from d2cache.canvas import Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob


@dataclass
class DecodedKV(CachePolicy, key="dkv"):
    """dKV-Cache-Decode (arXiv 2505.15781): reuse prompt and written tokens, one step late.

    K,V jump when a token turns from [MASK] into a word and hold still afterwards. So a step
    recomputes every masked position and what the step before wrote, and reuses the rest. Each
    block begins with two full passes, and every `reload` steps of a block make another.
    """

    reload: int = knob(8, 1, 512, "steps of a block between full passes")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.before = canvas
        self.opened = torch.full_like(canvas.start, -1)
        self.age = torch.zeros_like(canvas.start)  # steps since the block was opened

    def plan(self, canvas):
        full = super().plan(canvas)
        first = torch.where(canvas.block, canvas.position, canvas.tokens.shape[1]).amin(1)
        self.age = torch.where(first == self.opened, self.age + 1, 0)
        self.opened = first
        all_rows = ((self.age < 2) | (self.age % self.reload == 0))[:, None]
        written = canvas.tokens != self.before.tokens
        self.before = canvas
        why = canvas.masked * int(Why.CHOSEN) + written * int(Why.WRITTEN)
        return Plan(
            canvas.masked,
            torch.where(all_rows, full.refresh, canvas.masked | written),
            torch.where(all_rows, full.why, why.byte()),
        )
