"""The work of a step by graphs."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import wraps

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Canvas, Plan, Step
from d2cache.graphs.arena import claim_arena, discard_arena
from d2cache.graphs.canvas import KernelCanvas
from d2cache.graphs.layers import logits_of, run_again, run_layers, run_on_rows
from d2cache.graphs.packed_step import PackedStep, early_values
from d2cache.graphs.rules import LayerRules, SideStream, canvas_rules
from d2cache.graphs.state import map_tensors
from d2cache.graphs.support import kernels, kernels_fit, reads_logits
from d2cache.rows import Rows
from d2cache.work import Work, masks_of, nothing_left, rows_of

LOG = logging.getLogger("d2cache.graphs")
UNCAPTURABLE: dict[tuple[str, str], str] = {}  # policy and decoder -> why


def bucket(count: int, most: int) -> int:
    """The size that serves `count` rows: rounded up, the coarser the more there are."""
    for step, until in ((8, 32), (16, 128), (32, 256), (64, 512), (128, 1024)):
        if count <= until:
            return min(most, -(-max(count, 1) // step) * step)
    return min(most, -(-count // 256) * 256)


def on_its_device(method):
    """With the model's device as the current one: kernels and graphs go to no other."""

    @wraps(method)
    def on_device(self, *args):
        device = self.model.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return method(self, *args)

    return on_device


class GraphWork(Work):
    """`Work` by graphs from the second step on; the first is a full pass and runs eagerly.

    A graph is made in three turns: the first time a size comes up its work runs from Python, the
    second time it is captured, later it is replayed.
    """

    captures = True  # off in tests on a CPU: every turn is a first one

    def begin(self, canvas: Canvas) -> None:
        super().begin(canvas)
        self.arena, self.planned_ahead = None, False
        names = self.policy.key, self.decoder.key
        self.eager = bool(self.run.edits) or names in UNCAPTURABLE

    def close(self) -> None:
        super().close()
        if self.arena is not None:
            self.arena.busy = False

    @on_its_device
    def plan(self, canvas: Canvas) -> Plan:
        if self.eager or canvas.step == 0:
            return super().plan(canvas)
        if self.arena is None:
            owners = self.policy, self.decoder
            self.arena = claim_arena(self.model, *owners, canvas, self.captures)
        if not (self.planned_ahead or self.plan_next(canvas)):
            return super().plan(canvas)
        return self.arena.buffers.plan  # the device may still be writing it

    @on_its_device
    def rows(self, canvas: Canvas, plan: Plan) -> Rows | tuple[int, int] | None:
        """Where the plan was made ahead, only how many rows and predictions to run."""
        if not self.planned_ahead:
            return super().rows(canvas, plan)
        self.planned_ahead = False
        self.fill_random(canvas)  # while the device plans
        rows, _, heads, _, *rest = self.arena.read_counts()
        if nothing_left(canvas, *rest):
            return None
        length = canvas.tokens.shape[1]
        return bucket(rows, length), bucket(heads, length - canvas.prompt_length)

    @on_its_device
    def step(self, canvas: Canvas, plan: Plan, rows: Rows | tuple[int, int]) -> Step:
        if isinstance(rows, Rows):
            return super().step(canvas, plan, rows)
        run = self.step_with_restart if self.policy.restarts else self.step_at_once
        made = run(canvas, rows)
        if made is None:
            return self.step_as_planned(canvas)
        step = made.unpack(self.run, canvas)
        self.plan_next(step.after)
        return step

    def step_at_once(self, canvas: Canvas, size: tuple[int, int]) -> PackedStep | None:
        return self.replay("step", size, lambda: self.compute(*size), canvas.step)

    def step_with_restart(self, canvas: Canvas, size: tuple[int, int]) -> PackedStep | None:
        """Of a policy that restarts: all layers on the planned rows; then, once the host knows
        whether one fired, those after it again. These are long enough to be launched one by one."""
        step, first = canvas.step, 0
        if not self.policy.all_layers:
            if self.replay("layers", size, lambda: self.run_on_rows(*size), step) is None:
                return None
            first = self.arena.read_restart()
        if first < self.model.config.layers:
            again = lambda: self.run_again(*size, first)
            if self.attempt(lambda owners: self.arena.run_once(again, step, owners)) is None:
                return None
        finish = lambda: self.compute(*size, self.kept_outputs)
        return self.replay("step", size, finish, step)

    def plan_next(self, canvas: Canvas) -> bool:
        """Queue the next plan behind this step; its counts are read when its turn comes."""
        made = self.replay("plan", (), self.plan_ahead, canvas.step)
        self.planned_ahead = made is not None
        return self.planned_ahead

    def fill_random(self, canvas: Canvas) -> None:
        """Put the random numbers of this step at their fixed addresses."""
        buffers = self.arena.buffers
        for buffer, drawn in zip((buffers.uniform, buffers.noise), self.draw(canvas), strict=True):
            if drawn is not None:
                buffer.copy_(drawn)

    def step_as_planned(self, canvas: Canvas) -> Step:
        """Eagerly, the step whose plan and random numbers are in the arena."""
        buffers = self.arena.buffers
        masks = tuple(m.clone() for m in buffers.masks)
        plan = map_tensors(buffers.plan, torch.clone)
        counts = [int(m.sum(1).amax()) for m in masks]
        full = int(masks[0].sum(1).amin()) == canvas.tokens.shape[1]
        rows = rows_of(canvas, masks, self.model.config.shift, *counts, full)
        logits = self.model(canvas.tokens, rows, self.policy)
        self.mark_seen(canvas, rows)
        return self.write(canvas, plan, rows, logits, buffers.uniform, buffers.noise)

    def replay(self, kind: str, size: tuple, work, step: int):
        """work() with all state at its fixed addresses, replayed where it was captured before;
        None as in `attempt`."""
        return self.attempt(
            lambda owners: self.arena.run(kind, size, work, step, owners, self.captures)
        )

    def attempt(self, run):
        """run(owners) over the arena, or None when that is not possible: then the run goes on
        eagerly, from the same state."""
        if self.eager:
            return None
        arena, names = self.arena, (self.policy.key, self.decoder.key)
        owners = arena.owners(self.policy, self.decoder)
        try:
            return run(owners)
        except torch.cuda.OutOfMemoryError:
            reason = "out of memory"
        except Exception as error:  # a capture fails in as many ways as there are policies
            reason = (str(error) or type(error).__name__).splitlines()[0]
            UNCAPTURABLE[names] = reason
        LOG.warning("no graphs for %s and %s: %s", *names, reason)
        self.eager = True
        arena.release(owners)
        discard_arena(self.model, arena)
        return None

    # What is captured: no host in it, state only through the arena.

    def plan_ahead(self) -> bool:
        buffers, canvas = self.arena.buffers, self.arena.canvas()
        with ops.using(canvas_rules(self.model, canvas)):
            buffers.plan = self.policy.plan(canvas)
            buffers.masks, counts = self.masks(canvas, buffers.plan, buffers.stuck)
        self.arena.counts.copy_(counts, non_blocking=True)
        return True

    def masks(self, canvas: Canvas, plan: Plan, stuck: Tensor) -> tuple[tuple, Tensor]:
        shift, ids = self.model.config.shift, self.policy.kv.ids
        if not isinstance(canvas, KernelCanvas):
            return masks_of(canvas, plan, shift, stuck, ids)
        planes = plan.predict, plan.refresh, canvas.live
        return kernels.masks_of(canvas.tokens, ids, *planes, stuck, shift)

    def compute(self, count: int, heads: int, layers=run_layers) -> PackedStep:
        """3 to 5 on `count` rows; layers: makes the logits."""
        buffers, canvas = self.arena.buffers, self.arena.canvas()
        rules, table = self.rules_of(canvas, count, heads)
        rows, side = rules.rows, rules.side
        with ops.using(table):
            early = side.run(lambda: early_values(self.run, canvas, buffers.plan, rows))
            side.run(lambda: self.mark_seen(canvas, rows))
            early_done = side.done
            logits = layers(canvas.tokens, self.with_rope(rows), rules)
            side.wait(early_done)
            step = self.write(canvas, buffers.plan, rows, logits, buffers.uniform, buffers.noise)
            side.wait(side.done)
            if self.policy.parts is None and not step.shadow:
                vars(step).update(early)
            buffers.tokens, buffers.stuck = step.after.tokens, self.stuck
            return PackedStep(step, None if self.tempered() else rules.likeliest)

    def rules_of(self, canvas: Canvas, count: int, heads: int) -> tuple[LayerRules, dict]:
        """Rules for `count` rows of the plan, and with those for the canvas, as `ops.using` takes
        them."""
        fixed_rules, shift = canvas_rules(self.model, canvas), self.model.config.shift
        with ops.using(fixed_rules):
            rows = rows_of(canvas, self.arena.buffers.masks, shift, count, heads, None, full=False)
        side = SideStream(self.arena.streams.side if kernels_fit(self.model) else None)
        raw = not (self.tempered() or reads_logits(type(self.decoder)))
        length = canvas.tokens.shape[1]
        rules = LayerRules(self.model, self.policy, rows, length, raw, side)
        return rules, fixed_rules | rules.table

    def with_rope(self, rows: Rows) -> Rows:
        rope = tuple(t[rows.position][:, None] for t in self.arena.rope)
        return replace(rows, rope=rope)

    # The pieces of `step_with_restart`.

    def run_on_rows(self, count: int, heads: int) -> bool:
        canvas = self.arena.canvas()
        rules, table = self.rules_of(canvas, count, heads)
        with ops.using(table):
            run_on_rows(canvas.tokens, self.with_rope(rules.rows), rules)
        self.arena.restart.copy_(self.policy.restart(), non_blocking=True)
        return True

    def run_again(self, count: int, heads: int, first: int) -> bool:
        canvas = self.arena.canvas()
        rules, table = self.rules_of(canvas, count, heads)
        with ops.using(table):
            run_again(canvas.tokens, self.with_rope(rules.rows), rules, first)
        return True

    def kept_outputs(self, tokens: Tensor, rows: Rows, rules: LayerRules) -> Tensor:
        return logits_of(ops.rows_at(self.policy.output, rows.index), rows, rules)

    def tempered(self) -> bool:
        return self.decoder.temperature > 0 or self.decoder.top_p < 1
