"""The nouns of a denoising step: Canvas, Plan, Rows, Candidates, Step. No rules live here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag
from functools import cached_property

import torch
from torch import Tensor

from d2cache import ops

CANDIDATES = 5  # likeliest tokens that are shown and kept for a written position


class Why(IntFlag):
    """Reasons a row was recomputed; a row may have several. Zero means its K,V were reused."""

    FULL = 1  # a full pass
    CHOSEN = 2  # a masked position likely to be written soon
    WRITTEN = 4  # written by the step before: its K,V are still those of [MASK]
    ROLLOUT = 8  # attention rollout finds it influential
    GAP = 16  # fills a short gap between recomputed rows
    SHIFT = 32  # predicts its right neighbour
    BLOCK = 64  # in the open block
    WINDOW = 128  # near the open block


@dataclass(frozen=True)
class Run:
    """The whole configuration of one generation, as written into a trace."""

    model: str
    policy: str
    policy_knobs: dict
    decoder: str
    decoder_knobs: dict
    prompt_length: int
    gen_length: int
    block_length: int
    seeds: tuple[int, ...]  # one a row
    stop_at_eos: bool
    device: str
    dtype: str
    shape: dict  # the ModelConfig
    tokenizer: object = None  # gives a trace its token texts; not part of the configuration

    def settings(self) -> dict:
        """The configuration as plain values, for a trace's header."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tokenizer"}
        return plain | {"seeds": list(self.seeds)}


@dataclass(frozen=True)
class Canvas:
    """What is on the canvas before a step. Never edited: a step makes a new one.

    tokens (B,T) int64; answer = positions prompt_length to T. Rows of a batch with shorter
    prompts are padded on the left: `start` (B,) is each row's first own position.
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

    @cached_property
    def position(self) -> Tensor:
        """(T,) int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @cached_property
    def own(self) -> Tensor:
        """(B,T) bool: not left padding."""
        return self.position >= self.start[:, None]

    @cached_property
    def masked(self) -> Tensor:
        """(B,T) bool: answer positions still to be written."""
        return (self.tokens == self.mask_id) & (self.position >= self.prompt_length)

    @cached_property
    def known(self) -> Tensor:
        """(B,T) bool: prompt and written positions."""
        return ~self.masked & self.own

    @cached_property
    def block(self) -> Tensor:
        """(B,T) bool: the open block, that of each row's leftmost masked position."""
        first = self.masked.int().argmax(1, keepdim=True) - self.prompt_length
        index = (self.position - self.prompt_length).div(self.block_length, rounding_mode="floor")
        return index == first.div(self.block_length, rounding_mode="floor")

    @cached_property
    def live(self) -> Tensor:
        """(B,) bool: rows with something left to write (with stop_at_eos: before their end)."""
        if not self.stop_at_eos:
            return self.masked.any(1)
        ends = (self.tokens == self.eos_id) & (self.position >= self.prompt_length)
        return (self.masked & (ends.cumsum(1) == 0)).any(1)

    def density(self, sigma: float, as_shipped: bool = False) -> Tensor:
        """Certainty density (B,T) float32 on this canvas; as_shipped: the public code's padding."""
        if as_shipped:
            return ops.certainty_density_as_shipped(self.known, self.prompt_length, sigma)
        return ops.certainty_density(self.known, sigma)

    @cached_property
    def eligible(self) -> Tensor:
        """(B,T) bool: positions a step may write."""
        return self.masked & self.block & self.live[:, None]


@dataclass(frozen=True)
class Plan:
    """What a step shall compute; masks (B,T) bool, why (B,T) uint8 of `Why`.

    predict: a token is wanted here. refresh: K,V are recomputed here. as_shipped: treat this step
    as d2Cache's public code does: density with its padding, and masked positions without a
    prediction read confidence 1/V and token 0 instead of -inf, so that they can be written.
    """

    predict: Tensor
    refresh: Tensor
    why: Tensor
    as_shipped: bool = False


@dataclass(frozen=True)
class Rows:
    """A plan as indices: the rows that go through the layers.

    index (B,R) int64 canvas positions; ragged rows of a batch are filled by repeating a wanted
    one (writing the same K,V twice is exact), and `valid` (B,R) bool counts each once.
    position (B,R): index counted from the row's own first token. head (B,Q): which of the R rows
    predict; target (B,Q): the canvas position each predicts. keys (B,T) bool or None: real keys.
    """

    index: Tensor
    valid: Tensor
    position: Tensor
    head: Tensor
    target: Tensor
    keys: Tensor | None
    full: bool
    rope: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Candidates:
    """What the model proposes: tokens (B,T) int64, confidence (B,T), -inf where none.

    density (B,T): certainty density for the decoder's sigma, None where sigma is 0.
    """

    tokens: Tensor
    confidence: Tensor
    density: Tensor | None


@dataclass(frozen=True)
class Step:
    """One finished denoising step. Holds references to tensors that exist anyway: free to make.

    before, after: the canvases; logits (B,Q,V) of `rows.target`. rollout (B,T) or None.
    seconds: host time from the start of the step to its yield.
    """

    run: Run
    index: int
    before: Canvas
    after: Canvas
    plan: Plan
    rows: Rows
    logits: Tensor
    candidates: Candidates
    accepted: Tensor  # (B,T) bool
    rollout: Tensor | None
    seconds: float

    @property
    def tokens(self) -> Tensor:
        """(B,T) int64: the canvas after the step."""
        return self.after.tokens

    @property
    def confidence(self) -> Tensor:
        """(B,T): of each candidate, -inf where none was predicted."""
        return self.candidates.confidence

    @property
    def why(self) -> Tensor:
        """(B,T) uint8 of `Why`."""
        return self.plan.why

    @property
    def valid(self) -> Tensor:
        """(B,R) bool: first copy of each recomputed row."""
        return self.rows.valid

    @cached_property
    def likeliest(self) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of each row that predicts, (B,Q,5) ids and probabilities.

        Computed when first asked for, once however many watch.
        """
        wide = torch.promote_types(self.logits.dtype, torch.float32)
        top = self.logits.topk(min(CANDIDATES, self.logits.shape[-1]), dim=-1)
        total = self.logits.to(wide).logsumexp(-1, keepdim=True)
        return top.indices, (top.values.to(wide) - total).exp()
