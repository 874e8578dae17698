"""Applies the edits of one run while its loop runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from d2cache.canvas import Canvas, Plan, Why
from d2cache.edits import MOST_EDITS, Edit
from d2cache.model import ModelConfig
from d2cache.policies.base import CachePolicy
from d2cache.registry import Registered, knobs, make

LOG = logging.getLogger("d2cache.edits")


def checked(
    edits: Sequence[Edit], canvas: Canvas, config: ModelConfig, *owners: Registered
) -> tuple[Edit, ...]:
    """The edits, in the order of their steps; ValueError for what does not suit the run.

    owners: the run's policy and decoder.
    """
    if not isinstance(edits, Sequence) or not all(isinstance(e, Edit) for e in edits):
        raise ValueError(f"edits is {edits!r:.60}; it must be a list of d2cache.Edit")
    if len(edits) > MOST_EDITS:
        raise ValueError(f"there are {len(edits)} edits; {MOST_EDITS} are allowed in one run")
    if edits and len(canvas.tokens) > 1:
        raise ValueError(
            f"edits are for one row, this batch has {len(canvas.tokens)}; run the rows one by one"
        )
    for edit in edits:
        edit.check(canvas.prompt_length, canvas.tokens.shape[1], config)
        for one in owners:
            make(one.registry, one.kind, one.key, getattr(edit, one.kind))
    ordered = tuple(sorted(edits, key=lambda edit: edit.step))
    _check_steps(ordered, canvas)
    return ordered


def _check_steps(edits: Sequence[Edit], canvas: Canvas) -> None:
    """Refuse an edit after a step that no run of this length reaches."""
    most = int(canvas.masked.sum())  # every step writes a position or more
    for edit in edits:
        if edit.step >= most:
            raise ValueError(
                f"an edit is after step {edit.step}; this run has at most the steps 0 to {most - 1}"
            )
        most += sum(token == canvas.mask_id for token in edit.tokens.values())


class EditRunner:
    """The edits of one run, applied while its loop runs."""

    def __init__(self, edits: Sequence[Edit]):
        self.edits = edits
        self.replaced: list[tuple[Registered, str, object]] = []  # knobs with their first values

    def after(self, step: int) -> list[Edit]:
        return [edit for edit in self.edits if edit.step == step]

    def report_missed(self, steps: int) -> None:
        """Say which edits came after the end of a run of so many steps."""
        for edit in self.edits:
            if edit.step >= steps:
                LOG.warning(
                    "the edit after step %d did not happen: the run ended with step %d",
                    edit.step,
                    steps - 1,
                )

    def plan(self, policy: CachePolicy, canvas: Canvas) -> Plan:
        """What the policy plans, and the rows that edits after the previous step request."""
        edits = self.after(canvas.step - 1)
        changed = [at for edit in edits for at in edit.tokens]
        requested = [at for edit in edits for at in edit.requested]
        whole = any(edit.refresh == "all" for edit in edits)
        # a policy that decides by layer keeps more than K,V, and cannot renew one row of all that
        policy.whole = whole or (policy.parts is not None and bool(changed or requested))
        plan = policy.plan(canvas)
        if policy.whole:
            policy.whole = False
            return replace(CachePolicy.plan(policy, canvas), as_shipped=plan.as_shipped)
        if not (changed or requested):
            return plan
        refresh, why = plan.refresh.clone(), plan.why.clone()
        for positions, reason in ((changed, Why.WRITTEN), (requested, Why.FULL)):
            at = torch.tensor(positions, dtype=torch.int64, device=why.device)
            refresh[:, at] = True
            why[:, at] |= int(reason)
        return replace(plan, refresh=refresh, why=why)

    def write(self, step: int, tokens: Tensor, *owners: Registered) -> Tensor:
        """The canvas (B,T) as the edits of this step leave it; also sets the owners' knobs."""
        for edit in self.after(step):
            if edit.tokens:
                at = torch.tensor([list(edit.tokens)], device=tokens.device)
                new = torch.tensor([list(edit.tokens.values())], device=tokens.device)
                tokens = tokens.scatter(1, at, new)
            for one in owners:
                given = getattr(edit, one.kind)
                for knob in knobs(type(one)):
                    if knob.name in given:
                        self.replaced.append((one, knob.name, getattr(one, knob.name)))
                        setattr(one, knob.name, knob.check(one.key, given[knob.name]))
        return tokens

    def given(self, step: int, given: Tensor | None, mask_id: int) -> Tensor | None:
        """`Canvas.given` (B,T) as the edits of this step leave it: text that they mask is the
        run's to write from now on."""
        if given is None:
            return None
        masked = [
            at for edit in self.after(step) for at, token in edit.tokens.items() if token == mask_id
        ]
        if not masked:
            return given
        given = given.clone()
        given[:, masked] = False
        return given

    def undo(self) -> None:
        """Restore the knobs that policy and decoder came with."""
        while self.replaced:
            setattr(*self.replaced.pop())
