"""dInfer's vicinity cache: all but the current block and its neighbours."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from d2cache.canvas import Canvas
from d2cache.policies.prefix import PrefixCache
from d2cache.registry import knob


@dataclass
class WindowCache(PrefixCache, key="window"):
    """dInfer vicinity cache (arXiv 2510.08666): reuse all but the current block and its neighbours.

    Each block begins with a full pass, and the first `warmup` steps of a run are full passes too;
    otherwise, the rows from `before` positions left of the block to `after` right of it are
    recomputed, because what is close changes most. `every` > 0 adds a full pass every so many
    steps within a block.
    """

    as_shipped: bool = field(default=False, init=False, repr=False)  # only Fast-dLLM's code differs
    before: int = knob(16, 0, 512, "positions recomputed left of the current block")
    after: int = knob(16, 0, 512, "positions recomputed right of the current block")
    warmup: int = knob(4, 0, 64, "full passes at the start of a run")
    every: int = knob(0, 0, 512, "steps between full passes within a block; 0 for none")

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

    def window(self, canvas: Canvas) -> Tensor:
        first = self.block_start(canvas)[:, None]
        at = canvas.position
        near = (at >= first - self.before) & (at < first + canvas.block_length + self.after)
        return near & canvas.own
