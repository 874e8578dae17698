"""The nouns of a denoising step: Run, Canvas, Plan, Candidates, Step. No rules are here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag
from functools import cached_property

import torch
from torch import Tensor

from d2cache import ops
from d2cache.edits import Edit
from d2cache.model import ModelConfig
from d2cache.rows import Part, Rows

CANDIDATES = 5  # likeliest tokens shown and kept per written position


class Why(IntFlag):
    """Reasons a row was recomputed; a row may have several. Zero: its K,V were reused."""

    FULL = 1  # a full pass
    CHOSEN = 2  # chosen by the policy: a masked position likely to be written soon
    # chosen while the layers ran, by a test of the cache; eight bits have room for eight reasons,
    # so it shares the bit above
    VERIFY = 2
    WRITTEN = 4  # changed in the previous step: its K,V are still those of the old token
    ROLLOUT = 8  # attention rollout finds it influential
    GAP = 16  # fills a short gap between recomputed rows
    SHIFT = 32  # predicts its right neighbour
    BLOCK = 64  # in the current block
    WINDOW = 128  # near the current block


@dataclass(frozen=True)
class Run:
    """The complete configuration of one generation, as a trace records it."""

    model: str
    policy: str
    policy_knobs: dict
    decoder: str
    decoder_knobs: dict
    prompt_length: int
    gen_length: int
    block_length: int
    seeds: tuple[int, ...]  # one per row of the batch
    stop_at_eos: bool
    device: str
    dtype: str
    shape: dict  # the ModelConfig
    tokenizer: object = None  # gives a trace its token texts; not part of the configuration
    edits: tuple[Edit, ...] = ()  # made by hand, in the order of their steps
    weights: str | None = None  # "fp8" for 8-bit weights; None for weights of the dtype
    # for each row, the ranges [start, stop) of text after prompt_length that is there from the
    # beginning; () where there is none
    given: tuple[tuple[tuple[int, int], ...], ...] = ()

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig(**self.shape)

    def settings(self) -> dict:
        """The configuration as plain values, for a trace's header."""
        own = ("tokenizer", "edits", "weights", "given")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        edits = {"edits": [edit.plain() for edit in self.edits]} if self.edits else {}
        kind = {"weights": self.weights} if self.weights else {}
        ranges = [[list(one) for one in row] for row in self.given]
        given = {"given": ranges} if ranges else {}
        return plain | {"seeds": list(self.seeds)} | edits | kind | given

    def knobs(self, step: int) -> tuple[dict, dict]:
        """The knobs of policy and decoder in force at a step."""
        policy, decoder = self.policy_knobs, self.decoder_knobs
        for edit in self.edits:
            if edit.step < step:
                policy, decoder = {**policy, **edit.policy}, {**decoder, **edit.decoder}
        return policy, decoder


@dataclass(frozen=True, eq=False, repr=False)
class Canvas:
    """The canvas before a step. Immutable: each step makes a new one.

    Which positions are the answer, to be written, and which are given is decided here alone.
    tokens (B,T) int64. prompt_length: positions before the first mask of any row; in a plain run
    the answer is everything from there on. given (B,T) bool: where there are masks among text, the
    positions that are not to be written: text on both sides of a mask, and padding; else None.
    Rows of a batch with fewer tokens are padded on the left: `start` (B,) is each row's first
    position that is not padding.
    """

    tokens: Tensor
    start: Tensor
    prompt_length: int
    block_length: int
    mask_id: int
    eos_id: int
    padded: bool = False
    stop_at_eos: bool = False
    step: int = 0
    given: Tensor | None = None

    def __repr__(self) -> str:
        rows, length = self.tokens.shape
        left = int(self.masked.sum())
        return f"<Canvas before step {self.step}: {rows} x {length} positions, {left} masked>"

    @cached_property
    def position(self) -> Tensor:
        """(T,) int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @cached_property
    def own(self) -> Tensor:
        """(B,T) bool: not left padding."""
        return self.position >= self.start[:, None]

    @cached_property
    def answer(self) -> Tensor:
        """(T,) or (B,T) bool: positions that the run writes: masked at its start, or by an edit."""
        return self.position >= self.prompt_length if self.given is None else ~self.given

    @cached_property
    def first(self) -> int | Tensor:
        """Where the answer begins: prompt_length, or each row's first position of it (B,1) int64.

        Blocks are counted from here, so a row's blocks do not depend on its batch mates.
        """
        return self.prompt_length if self.given is None else first_of(self.answer)

    @cached_property
    def firsts(self) -> list[int]:
        """`first` of each row."""
        if isinstance(self.first, int):
            return [self.first] * len(self.tokens)
        return self.first[:, 0].tolist()

    @cached_property
    def masked(self) -> Tensor:
        """(B,T) bool: answer positions that are not written yet."""
        return (self.tokens == self.mask_id) & self.answer

    @cached_property
    def known(self) -> Tensor:
        """(B,T) bool: given and written positions."""
        return ~self.masked & self.own

    @cached_property
    def block(self) -> Tensor:
        """(B,T) bool: the current block, that of each row's leftmost masked position."""
        first = first_of(self.masked) - self.first
        index = (self.position - self.first).div(self.block_length, rounding_mode="floor")
        return index == first.div(self.block_length, rounding_mode="floor")

    @cached_property
    def live(self) -> Tensor:
        """(B,) bool: rows with masks left to write (with stop_at_eos: before their end of text).

        Only an end-of-text token that was written, with no given text after it, ends a row.
        """
        if not self.stop_at_eos:
            return self.masked.any(1)
        ends = (self.tokens == self.eos_id) & self.answer
        if self.given is not None:
            ends &= self.given.flip(1).cumsum(1).flip(1) == 0
        return (self.masked & (ends.cumsum(1) == 0)).any(1)

    def density(self, sigma: float | Tensor, as_shipped: bool = False) -> Tensor:
        """Certainty density (B,T) float32 on this canvas; sigma: a number, or (B,1) one per row.

        as_shipped: with the public code's padding.
        """
        if as_shipped:
            return self._density_as_shipped(sigma)
        return ops.certainty_density(self.known, sigma)

    def _density_as_shipped(self, sigma: float | Tensor) -> Tensor:
        if self.given is None:
            return ops.certainty_density_as_shipped(self.known, self.prompt_length, sigma)
        widths = sigma if isinstance(sigma, Tensor) else [sigma] * len(self.tokens)
        rows = zip(self.known.split(1), self.firsts, widths, strict=True)
        return torch.cat([ops.certainty_density_as_shipped(*row) for row in rows])

    @cached_property
    def eligible(self) -> Tensor:
        """(B,T) bool: positions a step may write."""
        return self.masked & self.block & self.live[:, None]


def first_of(mask: Tensor) -> Tensor:
    """(B,T) bool -> (B,1) int64: the first position of each row that is in the mask."""
    return mask.int().argmax(1, keepdim=True)


@dataclass(frozen=True)
class Plan:
    """What a step should compute: masks (B,T) bool, and why (B,T) uint8 of `Why`.

    predict: predict a token here. refresh: recompute K,V here. as_shipped: treat this step as
    d2Cache's public code does: density with its padding, and masked positions without a prediction
    get confidence 1/V and token 0 instead of -inf, so that they can be written.
    """

    predict: Tensor
    refresh: Tensor
    why: Tensor
    as_shipped: bool = False


@dataclass(frozen=True)
class Candidates:
    """What the model proposes: tokens (B,T) int64, confidence (B,T), -inf without a prediction.

    confidence: the decoder's certainty, in [0,1]. density (B,T): certainty density for the
    decoder's sigma, None without a prior. logits (B,Q,V) of `target` (B,Q), after temperature
    and top-p; computed (B,T) bool: where a prediction was made. noise (B,T): uniform in [0,1),
    for decoders that draw random numbers, else None.
    """

    tokens: Tensor
    confidence: Tensor
    density: Tensor | None
    logits: Tensor
    target: Tensor
    computed: Tensor
    noise: Tensor | None = None

    def plane(self, values: Tensor, blank: float) -> Tensor:
        """Values (B,Q) of the predictions on the canvas (B,T); `blank` without a prediction."""
        return on_canvas(values, self.target, self.computed, blank)


def on_canvas(values: Tensor, target: Tensor, computed: Tensor, blank: float) -> Tensor:
    """(B,Q) -> (B,T): each value at its target, `blank` where nothing was computed."""
    plane = torch.zeros(computed.shape, dtype=values.dtype, device=values.device)
    return plane.scatter(1, target, values).masked_fill(~computed, blank)


@dataclass(frozen=True, eq=False, repr=False)
class Step:
    """One finished denoising step. Only references tensors that exist anyway, so it costs nothing.

    before, after: the canvases, the latter with the edits made after this step; logits (B,Q,V) of
    `rows.target`. accepted (B,T) bool: written by the decoder. rollout (B,T) or None. parts (B,L,T)
    uint8 of `Part` where the policy decides layer by layer, else None. shadow: extra rows that the
    decoder sent through the layers, per row of the batch. extra (B,5) int64: work beside that of
    `parts`, in the counts that `ModelConfig.flops` takes, or None. seconds: host time from the
    start of the step to its yield.
    """

    run: Run
    index: int
    before: Canvas
    after: Canvas
    plan: Plan
    rows: Rows
    logits: Tensor
    candidates: Candidates
    accepted: Tensor
    rollout: Tensor | None = None
    parts: Tensor | None = None
    shadow: int = 0
    extra: Tensor | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        rows, length = self.tokens.shape
        return (
            f"<Step {self.index} of {self.run.policy} + {self.run.decoder}: {rows} x {length} "
            f"positions, {int(self.recomputed.sum())} recomputed, "
            f"{int(self.written.sum())} written>"
        )

    @property
    def tokens(self) -> Tensor:
        """(B,T) int64: the canvas after the step."""
        return self.after.tokens

    @property
    def confidence(self) -> Tensor:
        """(B,T): of each candidate, -inf without a prediction."""
        return self.candidates.confidence

    @cached_property
    def changed(self) -> Tensor:
        """(B,T) bool: positions whose token id this step changed."""
        return self.after.tokens != self.before.tokens

    @cached_property
    def written(self) -> Tensor:
        """(B,T) bool: positions where this step put a new token other than [MASK]: accepted ones
        that stayed, and those that an edit wrote."""
        return self.changed & (self.after.tokens != self.before.mask_id)

    @cached_property
    def recomputed(self) -> Tensor:
        """(B,T) bool: rows sent through at least one layer."""
        if self.parts is not None:
            return ((self.parts & Part.MLP) > 0).any(1) & self.before.live[:, None]
        return self.rows.wanted

    @cached_property
    def rows_per_layer(self) -> Tensor:
        """(B,) recomputed rows, averaged over the layers."""
        if self.parts is None:
            return self.valid.sum(1)
        through = (self.parts & Part.MLP) > 0
        return through.sum(2).float().mean(1) * self.before.live

    @cached_property
    def predicted(self) -> Tensor:
        """(B,) int64: rows sent through the LM head."""
        return (self.plan.predict.sum(1) + self.shadow) * self.before.live

    @cached_property
    def why(self) -> Tensor:
        """(B,T) uint8 of `Why`: the plan's reasons; SHIFT where a row was needed only to predict
        its neighbour, VERIFY where the policy chose it while the layers ran."""
        source = self.rows.wanted & ~self.plan.refresh
        late = torch.where(source, int(Why.SHIFT), int(Why.VERIFY)).to(torch.uint8)
        why = torch.where(self.plan.why == 0, late, self.plan.why)
        return why * self.recomputed

    @cached_property
    def work(self) -> Tensor:
        """(B,5) int64: the counts that `ModelConfig.flops` takes."""
        rows, length = self.valid.sum(1), self.before.own.sum(1)
        config = self.run.config
        if self.parts is None:
            work = config.work(rows, length, self.rows.new.sum(1))
        else:
            work = self._work_of_parts(self.parts, length)
        unseen = self.shadow * (rows > 0)
        shadow = config.work(unseen, length + self.shadow, unseen)
        total = torch.stack([a + b for a, b in zip(work, shadow, strict=True)], dim=1)
        return total if self.extra is None else total + self.extra * self.before.live[:, None]

    def _work_of_parts(self, parts: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        parts = parts * self.before.live[:, None, None]
        key, value, attention, mlp, evicted = (
            ((parts & part) > 0).sum(2)
            for part in (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP, Part.EVICTED)
        )
        scores = attention * (length[:, None] - evicted)
        return tuple(count.sum(1) for count in (key, value, attention, mlp, scores))

    @property
    def valid(self) -> Tensor:
        """(B,R) bool: the first copy of each recomputed row."""
        return self.rows.valid

    @cached_property
    def likeliest(self) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of each predicting row, (B,Q,5) ids and probabilities.

        Computed on first access and cached.
        """
        wide = torch.promote_types(self.logits.dtype, torch.float32)
        top = self.logits.topk(min(CANDIDATES, self.logits.shape[-1]), dim=-1)
        total = self.logits.to(wide).logsumexp(-1, keepdim=True)
        return top.indices, (top.values.to(wide) - total).exp()
