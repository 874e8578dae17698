"""dKV-Cache: written tokens are cached, one step late."""

from dataclasses import dataclass

import torch

from d2cache.canvas import Plan, Why
from d2cache.policies.prefix import BlockPolicy
from d2cache.registry import knob


@dataclass
class DecodedKV(BlockPolicy, key="dkv"):
    """dKV-Cache-Decode (arXiv 2505.15781): reuse the prompt and, one step late, written tokens.

    K,V change abruptly when [MASK] turns into a token, and hardly change afterwards. So a step
    recomputes every masked position and what the previous step wrote, and reuses the rest. Each
    block begins with two full passes, and there is another every `reload` steps within a block.
    """

    reload: int = knob(8, 1, 512, "steps between full passes within a block")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.before = canvas
        self.age = torch.zeros_like(canvas.start)  # steps since the block began

    def plan(self, canvas):
        full = super().plan(canvas)
        self.age = torch.where(self.enter_block(canvas), 0, self.age + 1)
        all_rows = ((self.age < 2) | (self.age % self.reload == 0))[:, None]
        written = canvas.tokens != self.before.tokens
        self.before = canvas
        why = canvas.masked * int(Why.CHOSEN) + written * int(Why.WRITTEN)
        return Plan(
            canvas.masked,
            torch.where(all_rows, full.refresh, canvas.masked | written),
            torch.where(all_rows, full.why, why.byte()),
        )
