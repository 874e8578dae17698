"""Small pure functions on (B,T) tensors: each rule is written once, here."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_replaced = threading.local()  # its `rules`: name -> replacement, in this thread


def replaceable(rule):
    """A rule that a GPU's kernel may replace, within `using`."""

    @functools.wraps(rule)
    def call(*args, **settings):
        return getattr(_replaced, "rules", {}).get(rule.__name__, rule)(*args, **settings)

    return call


class using:
    """A context in which functions replace the rules of the same names, in this thread only."""

    def __init__(self, rules: dict):
        self.rules = rules

    def __enter__(self):
        self.before, _replaced.rules = getattr(_replaced, "rules", {}), self.rules

    def __exit__(self, *_):
        _replaced.rules = self.before


FP8_LARGEST = 448.0  # of float8_e4m3fn
WIDEST = 40.0  # positions: the largest sigma where each row has its own


@replaceable
def certainty_density(known: Tensor, sigma: float | Tensor) -> Tensor:
    """Share of a Gaussian window around each position that lies on known positions.

    known (B,T) bool -> (B,T) float32 in [0,1]. d2Cache (arXiv 2509.23094) Eq. 3: a sum over
    known positions j of exp(-(i-j)^2 / 2 sigma^2), here divided by the window's whole mass and
    cut off no nearer than 6 sigma; beyond the edges nothing is known. sigma in positions: one
    number, or a tensor (B,1) with one per row, at most WIDEST.
    """
    radius = math.ceil(6 * (WIDEST if isinstance(sigma, Tensor) else sigma))
    lag = torch.arange(-radius, radius + 1, device=known.device, dtype=torch.float64)
    window = torch.exp(-((lag / sigma) ** 2) / 2)
    window = (window / window.sum(-1, keepdim=True)).expand(known.shape[0], -1)
    # float64: short, and a GPU would otherwise round a convolution to 10 bits
    total = F.conv1d(known[None].double(), window[:, None], padding=radius, groups=len(known))
    return total[0].float()


def certainty_density_as_shipped(
    known: Tensor, prompt_length: int, sigma: float | Tensor
) -> Tensor:
    """Certainty density with the public code's padding: (B,T) float32, 1 on the prompt.

    The prompt counts as one answer's length of known positions, and the right edge is padded with
    another, all like the last answer position: one early end token makes the tail look certain.
    """
    prompt, answer = known.split((prompt_length, known.shape[1] - prompt_length), dim=1)
    length = answer.shape[1]
    padded = torch.cat((torch.ones_like(answer), answer, answer[:, -1:].expand_as(answer)), dim=1)
    density = certainty_density(padded, sigma)[:, length : 2 * length]
    return torch.cat((torch.ones_like(prompt, dtype=density.dtype), density), dim=1)


@replaceable
def indices(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions of a mask (B,T) in rising order, (B,count), and which of them count (B,count):
    a row with fewer repeats its first, as writing the same value twice is exact."""
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    valid = mask.gather(1, order)
    return torch.where(valid, order, order[:, :1]), valid


def rows_among(wanted: Tensor, some: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of masks (B,T), the second within the first: the ranks of `some` among the wanted positions,
    (B,count), and their positions."""
    at, _ = indices(some, count)
    return (wanted.cumsum(1) - 1).gather(1, at).clamp_min(0), at


@replaceable
def list_rows(wanted: Tensor, source: Tensor, start: Tensor, rows: int, heads: int) -> tuple:
    """Of masks (B,T): the wanted positions (B,rows), which of them count, and each counted from its
    row's start (B,); which of them are sources (B,heads), and the sources' positions."""
    index, valid = indices(wanted, rows)
    position = (index - start[:, None]).clamp_min(0)
    return index, valid, position, *rows_among(wanted, source, heads)


def rows_at(x: Tensor, at: Tensor) -> Tensor:
    """x (B,T,d), at (B,N) int64 -> its rows at those positions, (B,N,d)."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


@replaceable
def top_k_mask(score: Tensor, eligible: Tensor, k: int | Tensor) -> Tensor:
    """(B,T) bool: the k highest eligible scores above -inf; ties go to the leftmost position.

    k: a number, or (B,1) int64 one per row. Confidence saturates at exactly 1.0, so ties are
    common and their order matters.
    """
    score = score.masked_fill(~eligible, float("-inf"))
    top = score.sort(dim=1, descending=True, stable=True)
    if isinstance(k, Tensor):
        best = torch.arange(score.shape[1], device=score.device) < k
        picked = torch.zeros_like(eligible).scatter_(1, top.indices, best)
    else:
        picked = torch.zeros_like(eligible).scatter_(1, top.indices[:, :k], True)
    return picked & (score > float("-inf"))


@replaceable
def moved_most(new: Tensor, old: Tensor, eligible: Tensor, k: int | Tensor) -> Tensor:
    """(B,T) bool: the k eligible rows of lowest cosine similarity between two stores.

    new, old (B,Hkv,T,D): heads are concatenated. dLLM-Cache's V-verify (arXiv 2506.06295). Rows
    that did not move at all come last, however their cosine is rounded; ties go to the left.
    """
    new, old = (v.transpose(1, 2).flatten(2) for v in (new, old))
    wide = torch.promote_types(new.dtype, torch.float32)
    similarity = F.cosine_similarity(new.to(wide), old.to(wide), dim=-1)
    return top_k_mask(-similarity.masked_fill((new == old).all(-1), 2), eligible, k)


@replaceable
def search_window(masked: Tensor, inside: Tensor, at: Tensor, size, k: int) -> Tensor:
    """(B,T) bool: masked positions from the current block's start to the end of the block with the
    k-th mask (of the last block if there are fewer).

    masked, inside (the current block): (B,T) bool; at (T,) or (B,T) positions counted from the
    answer's start; size: block length, a number or (B,1). The public code's bound on d2Cache's
    stage 1.
    """
    last = torch.where(masked.cumsum(1) >= k, at, at[..., -1:]).amin(1, keepdim=True)
    end = (last.div(size, rounding_mode="floor") + 1) * size
    start = torch.where(inside, at, at[..., -1:]).amin(1, keepdim=True)
    return masked & (at >= start) & (at < end)


@replaceable
def nucleus(mass: Tensor, candidates: Tensor, p: float) -> Tensor:
    """Smallest set of candidates with more than a share p of the candidates' mass.

    mass (B,T), candidates (B,T) bool -> (B,T) bool. p <= 0 selects none, p >= 1 all.
    d2Cache section 3.2 (stage 2).
    """
    if p <= 0:
        return torch.zeros_like(candidates)
    if p >= 1:
        return candidates
    order, before = _mass_before(mass, candidates)
    return torch.zeros_like(candidates).scatter_(1, order, before <= p) & candidates


def nucleus_within(mass: Tensor, candidates: Tensor, p: float) -> Tensor:
    """As many of the heaviest candidates as stay within a share p of the mass, at least one: the
    public code's rule, where the paper asks for mass beyond p."""
    order, before = _mass_before(mass, candidates)
    share = mass.masked_fill(~candidates, 0)
    share = (share / share.sum(1, keepdim=True)).gather(1, order)
    keep = before + share <= p
    keep[:, 0] = True
    return torch.zeros_like(candidates).scatter_(1, order, keep) & candidates


def _mass_before(mass: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Order of falling mass, and the share of mass before each in that order."""
    share = mass.masked_fill(~candidates, 0)
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    # candidates of zero mass still come before non-candidates
    top = share.masked_fill(~candidates, -1).sort(dim=1, descending=True, stable=True)
    value = top.values.clamp_min(0)
    return top.indices, value.cumsum(1) - value


def fill_gaps(selected: Tensor, width: int) -> Tensor:
    """(B,T) bool -> selected and the gaps between neighbours a < b with b - a <= width."""
    if width <= 1:
        return selected
    at = torch.arange(selected.shape[1], device=selected.device).expand_as(selected)
    far = selected.shape[1] + width  # nothing to join beyond the ends
    left = at.masked_fill(~selected, -far).cummax(1).values
    right = at.masked_fill(~selected, far).flip(1).cummin(1).values.flip(1)
    return selected | (right - left <= width)


def attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    """q (B,H,R,D) over k, v (B,Hkv,T,D) -> (B,H,R,D).

    keys bool: which keys count, (B,T) for all queries or (B,R,T) for each; None for all.
    """
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_per_head(keys), enable_gqa=grouped)


@replaceable
def attention_map(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attention` that keeps its map: -> outputs (B,H,R,D), head-averaged weights (B,R,T).

    Scores and weights are in at least float32, as they are within `attention`: float16 cannot hold
    the scores of large keys. In 16 bits the outputs are those of `attention`, to the last bit.
    """
    weight = _weights(q, k, keys)
    if weight.dtype != v.dtype:
        return attention(q, k, v, keys), weight.mean(1)
    return _by_shared(torch.matmul, weight, v), weight.mean(1)


def attention_weights(q: Tensor, k: Tensor, keys: Tensor | None) -> Tensor:
    """The weights of `attention_map` (B,R,T) alone."""
    return _weights(q, k, keys).mean(1)


@replaceable
def attention_and_mass(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, at: Tensor, counted: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of all positions, q (B,H,T,D): -> outputs (B,H,T,D), and the sum (B,T) of the
    head-averaged weights of the positions `at` (B,R) that count, `counted` (B,R) bool."""
    out, weights = attention_map(q, k, v, keys)
    return out, column_mass([rows_at(weights, at)], counted)[0]


@replaceable
def column_mass(maps: list[Tensor], counted: Tensor) -> Tensor:
    """Maps (B,R,T) of N layers, as `attention_map` returns them -> (N,B,T): their sums over the
    rows that count, (B,R) bool."""
    return torch.stack([(weights * counted[..., None]).sum(1) for weights in maps])


def _weights(q: Tensor, k: Tensor, keys: Tensor | None) -> Tensor:
    """Softmax (B,H,R,T) of the scaled scores of q (B,H,R,D) and k (B,Hkv,T,D)."""
    score = _by_shared(scaled_scores, q, k)
    counts = _per_head(keys)
    if counts is not None:
        score = score.masked_fill(~counts, float("-inf"))
    return score.softmax(-1)


@replaceable
def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """q (B,H,R,D) . k (B,H,T,D) / sqrt(D) -> (B,H,R,T), in at least float32."""
    if q.dtype.itemsize < 4:
        q, k = q.float(), k.float()
    return (q * q.shape[-1] ** -0.5) @ k.mT


def _by_shared(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, shared: Tensor) -> Tensor:
    """product(x, shared) of x (B,H,R,..) and shared (B,Hkv,..), which H / Hkv heads have in common:
    their rows in one product."""
    if x.shape[1] == shared.shape[1]:
        return product(x, shared)
    made = product(x.unflatten(1, (shared.shape[1], -1)).flatten(2, 3), shared)
    return made.unflatten(2, (-1, x.shape[2])).flatten(1, 2)


def _per_head(keys: Tensor | None) -> Tensor | None:
    """keys (B,T) or (B,R,T), as attention takes them, for scores (B,H,R,T)."""
    return None if keys is None else keys[:, None] if keys.dim() == 3 else keys[:, None, None]


@replaceable
def rollout_mass(maps: list[Tensor], rows: Tensor, valid: Tensor, length: int) -> Tensor:
    """Attention-rollout column mass (B,T), summing to T, without any T x T product.

    maps: per layer (B,R,T) head-averaged weights of the recomputed rows; rows (B,R) int64 their
    positions; valid (B,R) bool counts each once. With W = (A + I) / 2 and identity rows where
    nothing was recomputed (d2Cache Eq. 5-6), the column sums of W_L ... W_1 are 1 W_L ... W_1:
    one vector swept from the last layer down to the first.
    """
    mass = maps[0].new_ones(rows.shape[0], length)
    for weights in reversed(maps):
        half = mass.gather(1, rows) * valid / 2
        mass = mass.scatter_add(1, rows, -half)
        mass = mass + (half[:, None] @ weights)[:, 0]
    return mass


@replaceable
def temper(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits (B,Q,V) to choose tokens from, in at least float32: divided by a temperature above 0,
    and with top_p < 1 all but the smallest set of at least that mass set to -inf."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature > 0:
        # the largest becomes 0 first: a tiny temperature would make it infinite
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    return _truncate(logits, top_p) if top_p < 1 else logits


@replaceable
def choose_tokens(logits: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (B,Q,V) -> tokens (B,Q) int64 and their probability (B,Q), without a host sync.

    uniform None takes the likeliest token; otherwise `uniform` (B,Q) in [0,1) picks a token by
    inverse transform sampling.
    """
    if uniform is None:
        top = logits.max(-1)
        return top.indices, (top.values - logits.logsumexp(-1)).exp()
    prob = logits.softmax(-1)
    # a uniform that rounding puts past the end gets the last token of positive probability
    total = prob.cumsum(-1)
    target = (uniform[..., None] * total[..., -1:]).to(prob.dtype)
    token = torch.searchsorted(total, target, right=True)
    last = prob.shape[-1] - 1 - (prob.flip(-1) > 0).int().argmax(-1, keepdim=True)
    token = torch.minimum(token, last)
    return token[..., 0], prob.gather(-1, token)[..., 0]


@replaceable
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits: x (..,d) -> values (..,d) float8_e4m3fn and scales (..,1) float32.

    A scale is its row's largest magnitude / 448, so that values * scales is x, each element rounded
    by at most 1/16 of itself, or by scale / 1024 where it is below scale / 64. A row of zeros stays
    zeros.
    """
    most = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-30)
    # written as products: division by a number is not rounded alike on every device
    values = x * (most.reciprocal() * FP8_LARGEST)
    values = values.to(torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    return values, most * (1 / FP8_LARGEST)


def entropy(logits: Tensor) -> Tensor:
    """Entropy (B,Q) in nats of each distribution, from logits (B,Q,V) that may contain -inf."""
    log = logits.log_softmax(-1)
    return -torch.xlogy(log.exp(), log.exp()).sum(-1)


def _truncate(logits: Tensor, top_p: float) -> Tensor:
    """Nucleus of each distribution (arXiv 1904.09751): the rest becomes -inf."""
    top = logits.sort(dim=-1, descending=True, stable=True)
    prob = top.values.softmax(-1)
    drop = prob.cumsum(-1) - prob >= top_p
    drop[..., 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter_(-1, top.indices, drop), float("-inf"))
