"""The kernels that replace rules of `ops` while a step is traced."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import CANDIDATES, Canvas
from d2cache.graphs.blocks import Deferred, UnprojectedBlock
from d2cache.graphs.support import attend_can_wait, kernels, kernels_fit, stored_by_rows
from d2cache.model import Model
from d2cache.policies.base import CachePolicy
from d2cache.rows import Rows

REPLACED = (
    *("attention_map", "attention_and_mass", "column_mass", "rollout_mass"),
    *("choose_tokens", "certainty_density", "temper"),
)
PLAIN = SimpleNamespace(**{name: getattr(ops, name).__wrapped__ for name in REPLACED})


def canvas_rules(model: Model, canvas: Canvas) -> dict:
    """Replacements for the rules that work on (B,T) alone; none where the kernels do not fit."""
    if not kernels_fit(model) or canvas.tokens.shape[1] > kernels.LONGEST:
        return {}
    return dict(
        indices=kernels.indices,
        list_rows=kernels.list_rows,
        top_k_mask=kernels.top_k_mask,
        nucleus=kernels.nucleus,
        certainty_density=_certainty_density,
        moved_most=kernels.moved_most,
        search_window=kernels.search_window,
    )


def _certainty_density(known: Tensor, sigma: float | Tensor) -> Tensor:
    rules = PLAIN if isinstance(sigma, Tensor) else kernels
    return rules.certainty_density(known, sigma)


def _scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    made = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT, out_dtype=torch.float32)
    return (made * q.shape[-1] ** -0.5).unflatten(0, q.shape[:2])


def _attention_and_mass(q, k, v, keys, at, counted):
    some = q.gather(2, at[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    _, weights = kernels.attention(some, k, v, keys)
    return ops.attention(q, k, v, keys), kernels.column_mass([weights], counted)[0]


def _column_mass(maps, counted):
    rules = kernels if isinstance(maps[0], kernels.Weights) else PLAIN
    return rules.column_mass(maps, counted)


class SideStream:
    """Work beside the layers, on a stream of its own; in line where there is no stream."""

    def __init__(self, stream: torch.cuda.Stream | None):
        self.stream, self.done = stream, None
        self.main = None if stream is None else torch.cuda.current_stream()

    def run(self, work):
        """work() in a branch that begins here; `wait(self.done)` awaits it."""
        if self.stream is None:
            return work()
        self.stream.wait_stream(self.main)
        with torch.cuda.stream(self.stream):
            made = work()
        self.done = self.stream.record_event()
        return made

    def wait(self, done: torch.cuda.Event | None) -> None:
        if done is not None:
            self.main.wait_event(done)


class LayerRules:
    """Replacements for the rules of `ops` that work on the rows of every layer.

    layer: the one that runs now. likeliest: ids and probabilities (B,Q,5) that `choose_tokens`
    found. raw_logits: nothing reads logits in float32, so they stay in the model's dtype.
    """

    def __init__(
        self,
        model: Model,
        policy: CachePolicy,
        rows: Rows,
        length: int,
        raw_logits: bool,
        side: SideStream,
    ):
        self.model, self.policy, self.rows, self.length = model, policy, rows, length
        self.raw_logits, self.side = raw_logits, side
        self.layer, self.likeliest, self.mass, self.weights = 0, None, None, []
        self.fused, self.table = kernels_fit(model), {}
        if not self.fused:
            return
        few = rows.index.shape[1] <= kernels.MOST_ROWS
        keeps = few and type(policy).attend is not CachePolicy.attend
        self.kept = model.config.layers if keeps else 1  # a sweep over the layers needs every q
        self.lse = self.make(model.config.heads, rows.index.shape[1], dtype=torch.float32)
        self.table = dict(choose_tokens=self.choose_tokens, temper=self.temper)
        self.table |= dict(quantize_rows=kernels.quantize_rows, scaled_scores=_scaled_scores)
        if few:
            self.table |= dict(attention_map=self.attention_map, rollout_mass=self.rollout_mass)
            self.table |= dict(attention_and_mass=_attention_and_mass, column_mass=_column_mass)

    def make(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """(kept,B,*size), a slot for each layer whose values are kept."""
        batch, device = len(self.rows.index), self.rows.index.device
        dtype = dtype or self.model.dtype
        return torch.empty(self.kept, batch, *size, dtype=dtype, device=device)

    @cached_property
    def qkv(self) -> Tensor:
        c = self.model.config
        width = (c.heads + 2 * c.kv_heads) * c.head_width
        return self.make(self.rows.index.shape[1], width)

    @cached_property
    def q(self) -> Tensor:
        return self.make(self.rows.index.shape[1], self.model.config.width)

    def slot(self, store: Tensor) -> Tensor:
        """This layer's part of a store."""
        return store[self.layer % len(store)]

    def query(self) -> Tensor:
        """This layer's q (B,H,R,D)."""
        return self.slot(self.q).unflatten(-1, (self.model.config.heads, -1)).transpose(1, 2)

    def product(self, y: Tensor, linear) -> Tensor:
        """linear(y), written to this layer's slot."""
        out = self.slot(self.qkv)
        linear.part(y.flatten(0, 1), slice(None), out.flatten(0, 1))
        return out

    def tiling(self, links: int) -> kernels.Tiling | None:
        """How `kernels.chain` cuts `links` links on these rows, where it supports the model."""
        if self.model.dtype != torch.bfloat16 or self.model.weights is not None:
            return None
        if not all(map(stored_by_rows, self.model.blocks)):
            return None
        index = self.rows.index
        return kernels.compiled_tiling(self.model.config, links, index.numel(), index.device)

    def can_chain_all(self) -> bool:
        """Whether one kernel may run all layers, their attention included."""
        alone = len(self.rows.index) == 1 and self.rows.keys is None
        enters = type(self.policy).enter is not CachePolicy.enter
        return alone and attend_can_wait(self.policy) and not enters

    def attend_afterwards(self) -> None:
        """Call the policy's `attend` for every layer, after one kernel has run all of them."""
        for i, block in enumerate(self.model.blocks):
            self.layer, later = i, Deferred()
            self.policy.attend(i, UnprojectedBlock(block), later, later, later, self.rows)

    # The rules themselves, with the signatures that they have in `ops`.

    def attention_map(self, q, k, v, keys):
        if keys is not None and keys.dim() == 3:
            return PLAIN.attention_map(q, k, v, keys)
        if isinstance(q, Deferred):
            k, _ = self.policy.kv.at(self.layer)
            out, weights = q, kernels.Weights(self.query(), k, self.slot(self.lse), keys)
        else:
            out, weights = kernels.attention(q, k, v, keys, lse=self.slot(self.lse))
        self.weights.append(weights)
        last = self.layer == self.model.config.layers - 1 and len(self.weights) == self.kept
        if last and not self.policy.restarts:
            # most likely a rollout is wanted: it runs while the LM head reads its weights
            made = self.weights, self.rows.index, self.rows.valid, self.length
            self.mass = self.side.run(lambda: kernels.rollout(*made))
        return out, weights

    def rollout_mass(self, maps, rows, valid, length):
        if not isinstance(maps[0], kernels.Weights):
            return PLAIN.rollout_mass(maps, rows, valid, length)
        if self.mass is not None and all(a is b for a, b in zip(maps, self.weights, strict=True)):
            self.side.wait(self.side.done)
            return self.mass
        return kernels.rollout(maps, rows, valid, length)

    def temper(self, logits, temperature, top_p):
        return logits if self.raw_logits else PLAIN.temper(logits, temperature, top_p)

    def choose_tokens(self, logits, uniform):
        top, ids, lse = kernels.likeliest(logits, CANDIDATES)
        self.likeliest = ids, (top - lse[..., None]).exp()
        if uniform is not None:
            return PLAIN.choose_tokens(logits, uniform)
        return ids[..., 0], self.likeliest[1][..., 0]
