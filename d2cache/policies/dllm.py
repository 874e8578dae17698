"""dLLM-Cache: refresh the prompt rarely, and answer rows when their values have moved."""

from dataclasses import dataclass

import torch

from d2cache import answers, ops
from d2cache.canvas import Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob
from d2cache.rows import Part


@dataclass
class DLLMCache(CachePolicy, key="dllm"):
    """dLLM-Cache (arXiv 2506.06295): reuse the prompt for kp steps, and rows that hardly change.

    Stores K, V, attention output and MLP output of every row and layer. The prompt is recomputed
    every `kp` steps, the answer every `kr`; in between, each layer projects V of the whole answer
    and recomputes the share `rho` of rows whose V moved most since the last step (lowest cosine
    similarity). The answer's V is then always new, so V, K and the outputs of one row differ in
    age, and a slow drift goes unnoticed until the next `kr`.

    `first_layer` recomputes all of layer 0 in every step, as only the public code does: one layer's
    share of a full pass added to each step. Without it, a row can move in a deeper layer only where
    layer 0 picked it, so all layers pick the same rows: the written ones, and others from the left.
    """

    kp: int = knob(50, 1, 1024, "steps between refreshes of the prompt")
    kr: int = knob(4, 1, 1024, "steps between refreshes of the answer")
    rho: float = knob(0.25, 0.0, 1.0, "share of answer rows recomputed in the other steps")
    first_layer: bool = knob(False, None, None, "recompute layer 0 in every step")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        shape = (model.config.layers, *canvas.tokens.shape)
        self.attention, self.mlp = self.kv.k.new_zeros(2, *shape, model.config.width)
        self.answer = canvas.position >= canvas.first
        self.sizes = max(canvas.firsts), shape[2] - canvas.prompt_length  # at most, of any row

    def plan(self, canvas):
        self.own, self.fresh = canvas.own, canvas.own & (canvas.tokens != self.kv.ids)
        self.due = [self.whole or canvas.step % k == 0 for k in (self.kp, self.kr)]
        self.parts = torch.zeros_like(self.mlp[..., 0], dtype=torch.uint8).transpose(0, 1)
        self.extra = self.parts.new_zeros(len(canvas.tokens), 5, dtype=torch.int64)
        why = (self.refreshed(self.first_layer) * int(Why.FULL)).byte()
        return Plan(canvas.masked, torch.ones_like(canvas.own), why)  # all pass, if only as stored

    def refreshed(self, all_rows: bool) -> torch.Tensor:
        """(B,T) bool: rows that are due, or every row of the batch; whatever their values."""
        prompt, answer = (due or all_rows for due in self.due)
        return self.own & torch.where(self.answer, answer, prompt)

    def block(self, i, block, x, rows):
        all_rows = self.first_layer and i == 0
        chosen, verify = self.refreshed(all_rows), self.rho > 0 and not (self.due[1] or all_rows)
        counts = [n * (due or all_rows) for n, due in zip(self.sizes, self.due, strict=True)]
        before = self.kv.v[i].clone() if verify else None
        if i == 0:
            self.renew(block, x, rows)
        if verify:
            v, counts[1] = self.kv.v[i], int(self.rho * self.sizes[1])
            if i:
                answers.put_values(v, block.value, x, self.answer, v.shape[2] - self.sizes[1])
            chosen = chosen | answers.moved_most(v, before, self.answer, self.rho, counts[1])
        keys = (chosen if i else self.fresh) * int(Part.KEY | Part.VALUE)
        values = (self.answer & verify & (i > 0)) * int(Part.VALUE)
        self.parts[:, i] = chosen * int(Part.ATTENTION | Part.MLP) | keys | values
        if verify and i:  # the V of chosen answer rows, already new, is computed with their K
            self.extra[:, 1] += (chosen & self.answer).sum(1)
        if sum(counts):
            at = ops.indices(chosen, sum(counts))[0]
            inputs, picked = ops.rows_at(x, at), rows.take(at)
            stores = self.attention[i], self.mlp[i]
            with answers.idle_kept(self.answer, chosen, *self.kv.at(i), *stores):
                out = self.attend(i, block, *self.project(i, block, inputs, picked), picked)
                for kept, new in zip(stores, (out, block.mlp(inputs + out)), strict=True):
                    kept.scatter_(1, at[..., None].expand_as(new), new)
        return x + self.attention[i] + self.mlp[i]
