"""What a step of the loop does, and the functions that turn masks into rows and rows into masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas, Plan, Run, Step, on_canvas
from d2cache.decoders.base import Decoder
from d2cache.edit_runner import EditRunner
from d2cache.model import Model
from d2cache.policies.base import CachePolicy
from d2cache.rows import Rows
from d2cache.shadow import Shadow


class Work:
    """What a step does, numbered as in `generate`."""

    def __init__(
        self, model: Model, policy: CachePolicy, decoder: Decoder, run: Run, edits: EditRunner
    ):
        self.model, self.policy, self.decoder = model, policy, decoder
        self.run, self.edits = run, edits
        self.generators = [torch.Generator().manual_seed(seed) for seed in run.seeds]
        self.stuck = torch.zeros((), dtype=torch.bool, device=model.device)

    def begin(self, canvas: Canvas) -> None:
        self.policy.begin(self.model, canvas)
        self.decoder.begin(self.model, canvas)

    def close(self) -> None:
        """Called once at the end of the run, however it ended."""
        self.edits.undo()

    def plan(self, canvas: Canvas) -> Plan:
        """1: what the policy plans, and what edits ask for."""
        return self.edits.plan(self.policy, canvas)

    def rows(self, canvas: Canvas, plan: Plan) -> Rows | None:
        """2: the plan as indices; None when nothing is left to write."""
        shift, ids = self.model.config.shift, self.policy.kv.ids
        return gather_rows(canvas, plan, shift, self.stuck, ids)

    def step(self, canvas: Canvas, plan: Plan, rows: Rows) -> Step:
        """3 to 5."""
        logits = self.model(canvas.tokens, rows, self.policy)  # 3
        self.mark_seen(canvas, rows)
        return self.write(canvas, plan, rows, logits, *self.draw(canvas))

    def mark_seen(self, canvas: Canvas, rows: Rows) -> None:
        """Layer 0 has seen these rows with the ids that are there now."""
        self.policy.kv.ids.scatter_(1, rows.index, canvas.tokens.gather(1, rows.index))

    def draw(self, canvas: Canvas) -> tuple[Tensor | None, Tensor | None]:
        """The random numbers of this step, (B,T) float32 uniform in [0,1) each: to pick tokens
        with, and for a decoder that draws."""

        def uniform(wanted: bool) -> Tensor | None:
            # one number per position and step, whichever rows are computed, so that batch mates
            # change nothing
            if not wanted:
                return None
            length, pad = canvas.tokens.shape[1], torch.nn.functional.pad
            drawn = torch.stack(
                [
                    pad(torch.rand(length - first, generator=g), (first, 0))
                    for g, first in zip(self.generators, canvas.firsts, strict=True)
                ]
            )
            return drawn.to(self.model.device, non_blocking=True)

        return uniform(self.decoder.temperature > 0), uniform(self.decoder.draws)

    def write(
        self,
        canvas: Canvas,
        plan: Plan,
        rows: Rows,
        logits: Tensor,
        uniform: Tensor | None,
        noise: Tensor | None,
    ) -> Step:
        """4 and 5, from the logits (B,Q,V)."""
        logits[..., canvas.mask_id] = -torch.inf  # a model may predict [MASK] for ever
        candidates = self.candidates(canvas, plan, rows, logits, uniform, noise)
        accepted = self.decoder.accept(canvas, candidates)  # 4
        # NaN reaches the confidence from any logit; the loop distinguishes the two
        broken = candidates.confidence.isnan().any()
        self.stuck = (canvas.live & ~accepted.any(1)).any() | broken
        shadow = Shadow(self.model, self.policy.kv, canvas)
        tokens = self.tokens_after(canvas, candidates, accepted, shadow)
        given = self.edits.given(canvas.step, canvas.given, canvas.mask_id)
        after = replace(canvas, tokens=tokens, step=canvas.step + 1, given=given)
        step = Step(
            self.run,
            canvas.step,
            canvas,
            after,
            plan,
            rows,
            logits,
            candidates,
            accepted,
            parts=self.policy.parts,
            shadow=shadow.rows,
            extra=self.policy.extra,
        )
        self.policy.observe(after, step)  # 5
        return replace(step, rollout=self.policy.rollout)

    def candidates(
        self,
        canvas: Canvas,
        plan: Plan,
        rows: Rows,
        logits: Tensor,
        uniform: Tensor | None,
        noise: Tensor | None,
    ) -> Candidates:
        """Logits (B,Q,V) of the predicting rows -> candidates on the canvas (B,T)."""
        decoder = self.decoder
        logits = ops.temper(logits, decoder.temperature, decoder.top_p)
        picks = None if uniform is None else uniform.gather(1, rows.target)
        tokens, probability = ops.choose_tokens(logits, picks)
        computed = plan.predict & canvas.live[:, None]
        certainty = decoder.certainty(logits, probability)
        confidence = on_canvas(certainty, rows.target, computed, -torch.inf)
        if plan.as_shipped:
            confidence = confidence.masked_fill(canvas.masked & ~computed, 1 / logits.shape[-1])
        return Candidates(
            tokens=torch.zeros_like(canvas.tokens).scatter(1, rows.target, tokens),
            confidence=confidence,
            density=decoder.prior(canvas, plan.as_shipped),
            logits=logits,
            target=rows.target,
            computed=computed,
            noise=noise,
        )

    def tokens_after(
        self, canvas: Canvas, candidates: Candidates, accepted: Tensor, shadow: Shadow
    ) -> Tensor:
        """(B,T): accepted candidates written, doubtful positions masked again, edits applied."""
        tokens = torch.where(accepted, candidates.tokens, canvas.tokens)
        doubted = self.decoder.revise(canvas, accepted, shadow)
        if doubted is not None:
            tokens = torch.where(doubted, canvas.mask_id, tokens)
        return self.edits.write(canvas.step, tokens, self.policy, self.decoder)


Masks = tuple[Tensor, Tensor, Tensor]  # wanted, source, fresh: see `masks_of`


def gather_rows(canvas: Canvas, plan: Plan, shift: int, stuck: Tensor, ids: Tensor) -> Rows | None:
    """Masks to indices, with the step's one host sync; None when nothing is left to write.

    ids (B,T): the token id that layer 0 last saw at each position.
    """
    masks, counts = masks_of(canvas, plan, shift, stuck, ids)
    rows, all_rows, heads, changed, *rest = counts.tolist()
    if nothing_left(canvas, *rest):
        return None
    full = all_rows == canvas.tokens.shape[1]
    return rows_of(canvas, masks, shift, rows, heads, changed, full)


def masks_of(
    canvas: Canvas, plan: Plan, shift: int, stuck: Tensor, ids: Tensor
) -> tuple[Masks, Tensor]:
    """The rows to compute, those of them that predict and those whose id is new, (B,T) bool each;
    and counts (6,) int64: most and fewest rows, most that predict, most new, rows of the batch
    with something left to write, and whether the previous step wrote nothing."""
    live = canvas.live[:, None]
    # the logits that predict position j are those of row j - shift
    source = plan.predict.roll(-shift, 1) & live
    wanted = (plan.refresh & live) | source
    fresh = wanted & (canvas.tokens != ids)
    counts = torch.stack(
        (
            wanted.sum(1).amax(),
            wanted.sum(1).amin(),
            source.sum(1).amax(),
            fresh.sum(1).amax(),
            live.sum(),
            stuck,
        )
    )
    return (wanted, source, fresh), counts


def nothing_left(canvas: Canvas, left: int, stuck: int) -> bool:
    """From the last two counts of `masks_of`; RuntimeError when the previous step wrote nothing."""
    if stuck:
        raise RuntimeError(
            f"step {canvas.step - 1} wrote nothing: the decoder must accept at least one "
            "computed position of the current block"
        )
    return not left


def rows_of(
    canvas: Canvas,
    masks: Masks,
    shift: int,
    rows: int,
    heads: int,
    changed: int | None,
    full: bool,
) -> Rows:
    """The masks of `masks_of` as `Rows`: this many of each, filled up by repeating the first. All
    rows count as fresh where the number of changed ids is not known (changed None)."""
    wanted, source, new = masks
    index, valid, position, head, at = ops.list_rows(wanted, source, canvas.start, rows, heads)
    if changed is None:
        fresh = torch.arange(rows, device=index.device).expand_as(index)
    else:
        fresh, _ = ops.rows_among(wanted, new, changed)
    return Rows(
        index=index,
        valid=valid,
        position=position,
        head=head,
        target=at + shift,
        keys=canvas.own if canvas.padded else None,
        full=full,
        fresh=fresh,
        wanted=wanted,
        new=new,
    )
