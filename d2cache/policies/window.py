"""dInfer's vicinity cache: the open block and its neighbours."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from d2cache.policies.prefix import PrefixCache
from d2cache.registry import knob


@dataclass
class WindowCache(PrefixCache, key="window"):
    """dInfer vicinity cache (arXiv 2510.08666): reuse all but the open block and what lies near it.

    A full pass opens each block, and the first `warmup` steps of a run are full; then the rows
    from `before` positions left of the block to `after` right of it are recomputed, for what lies
    close changes most. `every` > 0 adds a full pass each so many steps of a block.
    """

    as_shipped: ClassVar[bool] = False  # a question of Fast-dLLM's code alone
    before: int = knob(16, 0, 512, "positions recomputed left of the open block")
    after: int = knob(16, 0, 512, "positions recomputed right of the open block")
    warmup: int = knob(4, 0, 64, "full passes at the start of a run")
    every: int = knob(0, 0, 512, "steps of a block between full passes; 0 makes none")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.age = torch.zeros_like(canvas.start)  # steps since the last full pass

    def plan(self, canvas):
        late = self.age + 1 >= self.every if self.every else torch.zeros_like(self.opened) > 0
        again = late | (canvas.step < self.warmup)
        self.opened = torch.where(again, -1, self.opened)  # as if the block were new
        opens = self.block_start(canvas) != self.opened
        self.age = torch.where(opens, 0, self.age + 1)
        return super().plan(canvas)

    def window(self, canvas):
        first = self.block_start(canvas)[:, None]
        at = canvas.position
        near = (at >= first - self.before) & (at < first + canvas.block_length + self.after)
        return near & canvas.own
