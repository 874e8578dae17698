"""A finished step in one buffer, so that it leaves a graph by one copy."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from d2cache.canvas import Candidates, Canvas, Plan, Run, Step
from d2cache.rows import Rows

PACKED = (
    *("accepted", "rollout", "parts", "recomputed", "why", "work"),
    *("changed", "written", "predicted"),
)


def early_values(run: Run, canvas: Canvas, plan: Plan, rows: Rows) -> dict[str, Tensor]:
    """What a step reports of its rows, known before the layers run; also computes masks of the
    canvas that are needed later."""
    step = Step(run, canvas.step, canvas, canvas, plan, rows, None, None, None)
    _ = canvas.eligible, canvas.known
    return {name: getattr(step, name) for name in ("recomputed", "why", "work", "predicted")}


class PackedStep:
    """A step's tensors in one buffer, logits apart.

    likeliest: ids and probabilities (B,Q,5) of the step's tokens, None where logits were tempered.
    """

    def __init__(self, step: Step, likeliest: tuple[Tensor, Tensor] | None):
        self.step, self.tempered = step, likeliest is None
        found = {(Canvas, "tokens"): step.after.tokens}
        for part in (step.plan, step.rows, step.candidates):
            for f in fields(part):
                value = getattr(part, f.name)
                if isinstance(value, Tensor) and f.name not in ("logits", "keys"):
                    found[type(part), f.name] = value
        for name in PACKED:
            if (value := getattr(step, name)) is not None:
                found[Step, name] = value
        if likeliest is not None:
            found[Step, "ids"], found[Step, "shares"] = likeliest
        # widest first, so that each begins at a multiple of its element size
        self.found = sorted(found.items(), key=lambda kv: -kv[1].element_size())
        flat = [t.contiguous().flatten().view(torch.uint8) for _, t in self.found]
        self.buffer = torch.cat(flat)
        self.sizes = [len(t) for t in flat]

    def unpack(self, run: Run, before: Canvas) -> Step:
        """The step, in tensors of its own."""
        step, made = self.step, self.copies()
        logits = step.logits.clone()
        keys = before.own if before.padded else None
        candidates = {"density": None} | made[Candidates]
        seen = made[Step]
        out = Step(
            run,
            before.step,
            before,
            replace(before, **made[Canvas], step=before.step + 1),
            Plan(**made[Plan], as_shipped=step.plan.as_shipped),
            Rows(**made[Rows], keys=keys, full=step.rows.full),
            logits,
            Candidates(
                **candidates, logits=step.candidates.logits.clone() if self.tempered else logits
            ),
            seen.pop("accepted"),
            rollout=seen.pop("rollout", None),
            parts=seen.pop("parts", None),
            shadow=step.shadow,
        )
        if "ids" in seen:
            seen["likeliest"] = seen.pop("ids"), seen.pop("shares")
        vars(out).update(seen)  # as cached properties
        return out

    def copies(self) -> dict[type, dict[str, Tensor]]:
        """Owner -> name -> tensor, copied out of the buffer."""
        made = {}
        pieces = self.buffer.clone().split(self.sizes)
        for ((owner, name), like), piece in zip(self.found, pieces, strict=True):
            made.setdefault(owner, {})[name] = piece.view(like.dtype).view(like.shape)
        return made
