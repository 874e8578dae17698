"""dLLM-Cache: refresh the prompt rarely, and answer rows when their values have moved."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from d2cache import ops
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

    Where masks stand among text, the prompt is what comes before a row's first mask, and the answer
    everything from there on: given text there moves as the masks around it are written.

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
        self.begins = canvas.prompt_length

    def plan(self, canvas):
        self.own, self.fresh = canvas.own, canvas.own & (canvas.tokens != self.kv.ids)
        self.due = [self.whole or canvas.step % k == 0 for k in (self.kp, self.kr)]
        self.parts = torch.zeros_like(self.mlp[..., 0], dtype=torch.uint8).transpose(0, 1)
        self.extra = self.parts.new_zeros(len(canvas.tokens), 5, dtype=torch.int64)
        why = self.refreshed(self.first_layer) * int(Why.FULL)
        # every row passes through the layers, recomputed or from the stored outputs
        return Plan(canvas.masked, torch.ones_like(canvas.own), why.byte())

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
            counts[1] = int(self.rho * self.sizes[1])
            if i:
                self.project_values(i, block, x)
            answer = self.answer.expand_as(self.own)
            chosen = chosen | ops.moved_most(self.kv.v[i], before, answer, self.share(counts[1]))
        keys = (chosen if i else self.fresh) * int(Part.KEY | Part.VALUE)
        values = (self.answer & verify & (i > 0)) * int(Part.VALUE)
        self.parts[:, i] = chosen * int(Part.ATTENTION | Part.MLP) | keys | values
        if verify and i:  # the V of chosen answer rows, already new, is computed with their K
            self.extra[:, 1] += (chosen & self.answer).sum(1)
        if sum(counts):
            at, _ = ops.indices(chosen, sum(counts))
            with self.idle_kept(i, chosen):
                self.recompute(i, block, x, rows, at)
        return x + self.attention[i] + self.mlp[i]

    def recompute(self, i, block, x, rows, at):
        """Layer i on the rows at `at` (B,N), into the stores."""
        inputs, picked = ops.rows_at(x, at), rows.take(at)
        out = self.attend(i, block, *self.project(i, block, inputs, picked), picked)
        for kept, new in ((self.attention[i], out), (self.mlp[i], block.mlp(inputs + out))):
            kept.scatter_(1, at[..., None].expand_as(new), new)

    def project_values(self, i, block, x):
        """V of the whole answer of every row, into the store."""
        stored, new = self.kv.v[i][:, :, self.begins :], block.value(x[:, self.begins :])
        if self.answer.dim() > 1:  # a row's answer may begin later
            new = torch.where(self.answer[:, None, self.begins :, None], new, stored)
        stored.copy_(new)

    def share(self, most):
        """How many answer rows to recompute: `most`, or (B,1) where rows differ in their answer."""
        if self.answer.dim() == 1:
            return most
        return (self.rho * self.answer.sum(1, keepdim=True).double()).long()

    @contextmanager
    def idle_kept(self, i, chosen):
        """A context that leaves rows of the batch as they are where nothing is chosen: `indices`
        has a position for them too. All rows have something where their answers begin together."""
        if self.answer.dim() == 1:
            yield
            return
        idle = ~chosen.any(1)
        stores = self.kv.k[i], self.kv.v[i], self.attention[i], self.mlp[i]
        before = [store[idle].clone() for store in stores]
        yield
        for store, kept in zip(stores, before, strict=True):
            store[idle] = kept
