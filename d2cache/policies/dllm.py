"""dLLM-Cache: the prompt rarely, the answer by the similarity of its values."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from d2cache import ops
from d2cache.canvas import Part, Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob


@dataclass
class DLLMCache(CachePolicy, key="dllm"):
    """dLLM-Cache (arXiv 2506.06295): refresh the prompt every kp steps, the answer by similarity.

    Keeps K, V, attention output and MLP output of every row and layer. The prompt is recomputed
    every `kp` steps, the answer every `kr`; between those, each layer projects V of the whole
    answer and recomputes the share `rho` of rows whose V moved most from the last step's (lowest
    cosine similarity). All V are then the new ones, so V, K and the outputs of one row differ in
    age, and a slow drift goes unseen until the next `kr`.

    `first_layer` recomputes layer 0 whole at every step, as the public code does and the paper
    does not say. It costs one layer of every step: at kp = 50, kr = 4 and 32 layers about a
    tenth of all row work, on long prompts half.
    """

    kp: int = knob(50, 1, 1024, "steps between refreshes of the prompt")
    kr: int = knob(4, 1, 1024, "steps between refreshes of the answer")
    rho: float = knob(0.25, 0.0, 1.0, "share of answer rows recomputed at the other steps")
    first_layer: bool = knob(False, None, None, "recompute layer 0 at every step")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        c, (b, t) = model.config, canvas.tokens.shape
        self.attention = torch.zeros(c.layers, b, t, c.width, device=model.device).to(model.dtype)
        self.mlp = torch.zeros_like(self.attention)
        self.answer = canvas.position >= canvas.prompt_length
        self.sizes = canvas.prompt_length, t - canvas.prompt_length

    def plan(self, canvas):
        self.own, self.fresh = canvas.own, canvas.tokens != self.kv.ids
        self.due = canvas.step % self.kp == 0, canvas.step % self.kr == 0  # prompt, answer
        shape = (len(canvas.tokens), len(self.mlp), canvas.tokens.shape[1])
        self.parts = torch.zeros(shape, dtype=torch.uint8, device=canvas.tokens.device)
        why = self.refresh(self.first_layer) * int(Why.FULL)
        # every row passes through the layers: as new work or as what is kept of it
        return Plan(canvas.masked, torch.ones_like(canvas.own), why.byte())

    def refresh(self, every):
        """(B,T) bool: rows that this step recomputes whatever their values say."""
        prompt, answer = (due or every for due in self.due)
        return self.own & torch.where(self.answer, answer, prompt)

    def block(self, i, block, x, rows):
        every = self.first_layer and i == 0
        chosen = self.refresh(every)
        count = sum(n for n, due in zip(self.sizes, self.due, strict=True) if due or every)
        before = self.kv.v[i].clone() if self.rho else None
        if i == 0:
            self.renew(block, x, rows)
            self.parts[:, 0] |= self.fresh * int(Part.KEY | Part.VALUE)
        if self.rho and not (self.due[1] or every):
            chosen = chosen | self.verify(i, block, x, before)
            count += int(self.rho * self.sizes[1])
        if count:
            self.recompute(i, block, x, rows, chosen, count)
        return x + self.attention[i] + self.mlp[i]

    def verify(self, i, block, x, before):
        """(B,T) bool: the answer rows whose V moved most; all of the answer's V become new."""
        p, g = self.sizes
        if i > 0:
            self.kv.v[i][:, :, p:] = block.value(x[:, p:])
            self.parts[:, i] |= (self.answer * int(Part.VALUE)).byte()
        new, old = (v[:, :, p:].transpose(1, 2).flatten(2).float() for v in (self.kv.v[i], before))
        similarity = F.cosine_similarity(new, old, dim=-1)
        # what did not move at all comes last, whatever rounding makes of its cosine
        similarity = similarity.masked_fill((new == old).all(-1), 2.0)
        return F.pad(ops.top_k_mask(-similarity, similarity <= 2, int(self.rho * g)), (p, 0))

    def recompute(self, i, block, x, rows, chosen, count):
        at, _ = ops.indices(chosen, count)
        wide = at[..., None].expand(-1, -1, x.shape[-1])
        some, part = x.gather(1, wide), rows.take(at)
        attention = self.attend(i, block, *self.project(i, block, some, part), part)
        self.attention[i].scatter_(1, wide, attention)
        self.mlp[i].scatter_(1, wide, block.mlp(some + attention))
        done = Part.ATTENTION | Part.MLP if i == 0 else Part.ALL
        self.parts[:, i] |= chosen * int(done)
