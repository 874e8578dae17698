"""Measurements that the engine itself does not make: exact passes alongside a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2cache import CachePolicy, Model, Step, Trace, ops
from d2cache.policies import KV
from d2cache.rows import Rows

MOST_CELLS = 1 << 24  # of the attention maps in memory at once


@dataclass(frozen=True)
class Look:
    """How a step differs from an exact full pass on the canvas before it.

    k_drift, v_drift (T,) float32: distance of the keys and values that the step's attention read
    from the exact ones, 0 to 2: 1 - cosine with the heads joined, mean over the layers. kl (G,)
    float32: KL(exact || cached) of each prediction in nats, NaN where none was made. flips: canvas
    positions whose likeliest token differs. oracle: the k canvas positions whose cached keys and
    values had drifted most (K's drift + V's) before the step recomputed any, ascending, ties broken
    to the left; k is the number that it recomputed. recall: share of them that the step recomputed.
    Without an oracle, () and None: if all rows or none were recomputed, and if `Truth` did not look
    at the previous step.
    """

    step: int
    k_drift: np.ndarray
    v_drift: np.ndarray
    kl: np.ndarray
    flips: tuple[int, ...]
    oracle: tuple[int, ...]
    recall: float | None


class _Exact(CachePolicy):
    """No cache. `run` makes a full pass on canvases of any tokens; maps: keep attention maps."""

    def __init__(self, model: Model, maps: bool = False):
        self.model = model
        self.maps: list[Tensor] | None = [] if maps else None

    @torch.inference_mode()
    def run(self, tokens: Tensor, target: Tensor | None = None) -> Tensor:
        """tokens (B,T) -> logits (B,Q,V) that predict the positions `target` (B,Q)."""
        tokens = tokens.to(self.model.device)
        self.kv = KV(self.model, *tokens.shape)
        if self.maps:
            self.maps.clear()
        every = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        whole, target = torch.ones_like(every) > 0, every[:, :0] if target is None else target
        return self.model(
            tokens,
            Rows(
                index=every,
                valid=whole,
                position=every,
                head=target - self.model.config.shift,
                target=target,
                keys=None,
                full=True,
                fresh=every,
                wanted=whole,
                new=whole,
            ),
            self,
        )

    def attend(self, i, block, q, k, v, rows):
        if self.maps is None:
            return super().attend(i, block, q, k, v, rows)
        out, attention = ops.attention_map(q, k, v, rows.keys)
        self.maps.append(attention)
        return block.project_out(out)


class Truth:
    """Exact passes alongside a cached run: a full pass per step, compared with what the step read.

    policy: the object that the run uses. Call `look` right after each step, because it reads the
    policy's cache as the step left it; steps may be skipped. Any policy, a batch of one. For
    evicted positions, what the cache still holds is compared.

    Raises ValueError for a larger batch.
    """

    def __init__(self, model: Model, policy: CachePolicy):
        self.policy, self.exact = policy, _Exact(model)
        self.last = -1  # the last step looked at
        self.kept: list[Tensor] | None = None  # the K,V that it left

    def watch(self, steps: Iterable[Step]) -> Iterator[tuple[Step, Look]]:
        """The steps of a run, each with its `Look`."""
        for step in steps:
            yield step, self.look(step)

    @torch.inference_mode()
    def look(self, step: Step) -> Look:
        batch = len(step.before.tokens)
        if batch > 1:
            raise ValueError(
                f"the batch has {batch} prompts; Truth compares one, so run them one by one"
            )
        target, p = step.rows.target, step.before.prompt_length
        logits = self.exact.run(step.before.tokens, target)
        logits[..., step.before.mask_id] = -torch.inf  # as in the loop
        exact, cached = (x.to(_wide(x)).log_softmax(-1) for x in (logits, step.logits))
        # a token of probability 0 adds nothing: 0 * (-inf - -inf) is not a number
        gain = torch.where(exact > -torch.inf, exact.exp() * (exact - cached), 0).sum(-1)
        kl = torch.full(step.before.tokens.shape, torch.nan, dtype=gain.dtype, device=gain.device)
        kl = kl.scatter(1, target, gain.clamp_min(0))
        flips = target[0][exact[0].argmax(-1) != cached[0].argmax(-1)]
        true, kv = (self.exact.kv.k, self.exact.kv.v), (self.policy.kv.k, self.policy.kv.v)
        k_drift, v_drift = (_drift(*pair) for pair in zip(kv, true, strict=True))
        recomputed = step.recomputed[0]
        oracle: list[int] = []
        recall, count = None, int(recomputed.sum())
        if self.kept is not None and self.last == step.index - 1 and 0 < count < len(recomputed):
            k_kept, v_kept = (_drift(*pair) for pair in zip(self.kept, true, strict=True))
            best = (k_kept + v_kept).sort(descending=True, stable=True).indices[:count]
            oracle, recall = best.sort().values.tolist(), float(recomputed[best].double().mean())
        self.last, self.kept = step.index, [t.clone() for t in kv]
        return Look(
            step.index,
            k_drift.float().cpu().numpy(),
            v_drift.float().cpu().numpy(),
            kl[0, p:].float().cpu().numpy(),
            tuple(flips.tolist()),
            tuple(oracle),
            recall,
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _drift(kept: Tensor, exact: Tensor) -> Tensor:
    """(L,1,Hkv,T,D) twice -> (T,): 1 - cosine with the heads joined, mean over the layers."""
    kept, exact = (x[:, 0].transpose(1, 2).flatten(2).to(_wide(x)) for x in (kept, exact))
    return (1 - F.cosine_similarity(kept, exact, dim=-1)).clamp_min(0).mean(0)


def attention_map(model: Model, trace: Trace, step: int, layer: int) -> np.ndarray:
    """(T,T) float32: head-averaged attention of one layer, exact, on the canvas before a step.

    Row i is where position i attends; rows sum to 1. Raises IndexError for a step or a layer that
    the run does not have.
    """
    _check_index("layer", layer, model.config.layers)
    return _maps(model, trace, step)[layer][0].float().cpu().numpy()


def rollout_map(model: Model, trace: Trace, step: int) -> np.ndarray:
    """(T,T) float32: attention rollout of an exact full pass on the canvas before a step.

    Row i is where the output of position i comes from; rows sum to 1. Dense product of
    W = (A + I) / 2 over the layers (arXiv 2005.00928). Raises IndexError for a step that the run
    does not have.
    """
    maps = _maps(model, trace, step)
    product = eye = torch.eye(trace.tokens.shape[1], device=model.device)
    for attention in maps:
        product = (attention[0].float() + eye) / 2 @ product
    return product.cpu().numpy()


def column_sums(grid: np.ndarray) -> np.ndarray:
    """A map (T,T) -> (T,): what each position gives to all others.

    Rows sum to 1, so the mean is 1; 2 is twice the average position.
    """
    return grid.sum(0)


def rollout_columns(model: Model, trace: Trace) -> np.ndarray:
    """(S,T) float32: column sums of the exact attention rollout before every step; mean 1."""
    exact, columns = _Exact(model, maps=True), []
    for tokens in _batches(model, trace):
        exact.run(tokens)
        rows = torch.arange(tokens.shape[1], device=model.device).expand_as(tokens)
        mass = ops.rollout_mass(exact.maps, rows, torch.ones_like(rows), tokens.shape[1])
        columns.append(mass.float().cpu().numpy())
    return np.concatenate(columns)


def life(model: Model, trace: Trace, position: int) -> dict:
    """How the exact keys and values of one canvas position move through a run.

    -> k, v: (S,2) float64, the first two principal components over the steps of its K (V), mean
    over the layers, heads joined; the largest weight of each component is positive. explained:
    {k, v} (2,), the share of the variance in each component, 0 where nothing moves. moved:
    {k, v} (S,), Euclidean distance of K (V) from the previous step's, over all components, 0 at the
    first step. Raises IndexError for a position that is not on the canvas.
    """
    _check_index("position", position, trace.tokens.shape[1])
    exact, seen = _Exact(model), []
    for tokens in _batches(model, trace):
        exact.run(tokens)
        both = torch.stack((exact.kv.k, exact.kv.v))[..., position, :].double()  # (2,L,B,Hkv,D)
        seen.append(both.mean(1).flatten(2).cpu().numpy())
    components, explained, moved = {}, {}, {}
    for name, rows in zip("kv", np.concatenate(seen, axis=1), strict=True):
        components[name], explained[name] = _components(rows)
        moved[name] = np.append(0, np.linalg.norm(np.diff(rows, axis=0), axis=1))
    return {"explained": explained, "moved": moved, **components}


def _components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,C) -> its first two principal components (S,2) and their share of the variance (2,)."""
    rounding = 1e-6 * np.linalg.norm(x)  # of float32: anything less is no movement
    left, size, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    size = np.where(size > rounding, size, 0)
    sign = np.sign(np.take_along_axis(right, np.abs(right).argmax(1)[:, None], 1)[:, 0])
    two, share = np.zeros((len(x), 2)), np.zeros(2)
    count = min(2, len(size))
    two[:, :count] = (left * size * sign)[:, :count]
    share[:count] = (size**2 / max((size**2).sum(), 1e-300))[:count]
    return two, share


def _maps(model: Model, trace: Trace, step: int) -> list[Tensor]:
    _check_index("step", step, trace.seconds.size)
    exact = _Exact(model, maps=True)
    exact.run(torch.from_numpy(trace.tokens[step][None]))
    return exact.maps or []


def _batches(model: Model, trace: Trace) -> Iterator[Tensor]:
    """The canvases before the steps, (B,T) each: as many at once as memory and caches allow."""
    c, length = model.config, trace.tokens.shape[1]
    size = min(8, max(1, MOST_CELLS // (length**2 * max(c.layers, c.heads))))
    return iter(torch.from_numpy(trace.tokens[:-1]).split(size))


def _check_index(what: str, value: int, count: int) -> None:
    if not 0 <= value < count:
        raise IndexError(f"{what} is {value}; this run has {what}s 0 to {count - 1}")
