"""Decoding rules: each restated for one row in plain numpy and followed step by step.

Steps come from two sources: `play`, with random distributions that include what a model rarely
does (ties, certainties of exactly a threshold, tokens of probability 0), and real runs. A decoder
without a restatement fails by name, and the properties that all decoders must have are tested for
every registered one.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from lab import DECODER_KNOBS, DECODERS, POLICIES, SMALL, random_prompt, run, small_model

import d2cache
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders import Decoder
from d2cache.decoders.confidence import Confidence
from d2cache.shadow import Shadow

WORDS, MASK, END = 14, 13, 12  # vocabulary of the random distributions
PROMPT, ANSWER, BLOCK = 4, 20, 8  # the last block is short


# --- what a rule may see --------------------------------------------------------------------------


@dataclass
class Sight:
    """One row before a step. Arrays (T,) over the canvas; confidence is -inf where uncomputed."""

    step: int
    first: int  # position of the answer's first token
    size: int  # block length
    written: list[int]  # answer positions
    masked: list[int]  # of the current block; none in a row that has ended
    token: np.ndarray
    confidence: np.ndarray
    density: np.ndarray | None
    share: dict[int, np.ndarray]  # computed position -> its distribution (V,)
    lot: np.ndarray | None

    @property
    def open(self) -> list[int]:
        return [j for j in self.masked if self.confidence[j] > -np.inf]

    def score(self, j: int):
        return self.confidence[j] * (1 if self.density is None else self.density[j])

    def best(self, count: int, score=None, sure=()) -> list[int]:
        """The `sure`, and the best others up to `count`; ties go to the left."""
        score = score or self.score
        rank = sorted(self.open, key=lambda j: (j not in sure, -score(j), j))
        return rank[: max(count, len(sure))]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(float) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def see(canvas: Canvas, candidates: Candidates, b: int) -> Sight:
    tokens, first = canvas.tokens[b].tolist(), canvas.prompt_length
    masked = [j for j in range(first, len(tokens)) if tokens[j] == canvas.mask_id]
    ends = [j for j in range(first, len(tokens)) if tokens[j] == canvas.eos_id]
    end = ends[0] if ends and canvas.stop_at_eos else len(tokens)
    block = [
        j
        for j in masked
        if (j - first) // canvas.block_length == (masked[0] - first) // canvas.block_length
    ]
    at, share = candidates.target[b].tolist(), softmax(candidates.logits[b].numpy())
    return Sight(
        step=canvas.step,
        first=first,
        size=canvas.block_length,
        written=[j for j in range(first, len(tokens)) if j not in masked],
        masked=block if any(j < end for j in masked) else [],
        token=candidates.tokens[b].numpy(),
        confidence=candidates.confidence[b].numpy(),
        density=None if candidates.density is None else candidates.density[b].numpy(),
        share={j: p for j, p in zip(at, share, strict=True) if candidates.computed[b, j]},
        lot=None if candidates.noise is None else candidates.noise[b].numpy(),
    )


# --- the rules ------------------------------------------------------------------------------------

RULES: dict[str, type] = {}


class Rule:
    """A decoder for one row. `met` collects what happened, `branches` is what must happen."""

    cases = ({},)  # knobs to try
    sigmas = (0.0, 3.0)
    branches = frozenset()

    def __init_subclass__(cls, of: str | None = None):
        if of:
            RULES[of] = cls

    def __init__(self, knobs: dict, frequency=None):
        self.knob, self.frequency, self.met = knobs, frequency, set()
        self.least = knobs["tokens_per_step"]
        self.begin()

    def begin(self):
        pass

    def certainty(self, share, token):
        return share[token]

    def width(self) -> float:
        return self.knob["sigma"]

    def note(self, **facts):
        self.met |= {name for name, fact in facts.items() if fact}

    def fill(self, sight, sure):
        self.note(filled=len(sure) < self.least, several=len(sure) > self.least)
        return sight.best(self.least, sure=sure)

    def revise(self, sight, accepted, opinion):
        return []

    def wrote(self, positions, step):
        pass


class Best(Rule, of="confidence"):
    def accept(self, sight):
        return sight.best(self.least)


class Margin(Best, of="margin"):
    def certainty(self, share, token):
        low, high = np.sort(share)[-2:]
        return high - low


class Entropy(Best, of="entropy"):
    def certainty(self, share, token):
        return 1 - nats(share) / np.log(len(share))


class Adaptive(Best, of="adaptive"):
    sigmas = (2.0, 30.0)
    branches = frozenset({"first", "spread", "narrowest", "forgotten"})

    def begin(self):
        self.history = []  # (step, position)

    def wrote(self, positions, step):
        self.history += [(-step, j) for j in positions]

    def width(self):
        last = [j for _, j in sorted(self.history)[:16]]
        if len(last) < 2:
            self.note(first=True)
            return self.knob["sigma"]
        spread = float(np.std(last))
        self.note(spread=spread > 1, narrowest=spread < 1, forgotten=len(self.history) > 16)
        return min(max(spread, 1), 40)


class Random(Rule, of="random"):
    def accept(self, sight):
        return sight.best(
            self.least,
            lambda j: sight.lot[j] * (1 if sight.density is None else sight.density[j]),
        )


class Threshold(Rule, of="threshold"):
    cases = tuple(dict(threshold=t) for t in (0.0, 0.375, 0.5, 0.95, 1.0))
    branches = frozenset({"filled", "several", "exact"})

    def accept(self, sight):
        sure = [j for j in sight.open if sight.confidence[j] >= self.knob["threshold"]]
        self.note(exact=any(sight.confidence[j] == self.knob["threshold"] for j in sure))
        return self.fill(sight, sure)


class Factor(Rule, of="factor"):
    cases = tuple(dict(factor=f) for f in (0.0, 0.5, 1.0, 2.0, 8.0))
    branches = frozenset({"filled", "several", "all"})

    def accept(self, sight):
        order = sorted(sight.open, key=lambda j: -sight.confidence[j])
        n = max(
            [
                n
                for n in range(1, len(order) + 1)
                if (n + 1) * (1 - sight.confidence[order[n - 1]]) < self.knob["factor"]
            ],
            default=0,
        )
        self.note(all=n == len(order) > 1)
        return self.fill(sight, order[:n])


def nats(share) -> float:
    return -sum(p * np.log(p) for p in share if p > 0)


class EntropyBound(Rule, of="eb"):
    cases = tuple(dict(gamma=g) for g in (0.0, 0.001, 0.3, 2.0, 10.0))
    branches = frozenset({"filled", "several", "bounded", "all", "rows"})

    def accept(self, sight):
        order = sight.best(len(sight.open))
        each = [nats(sight.share[j]) if j in sight.share else np.inf for j in order]
        n = 0
        while n < len(each) and each[n] < np.inf:
            if sum(each[: n + 1]) - max(each[: n + 1]) > self.knob["gamma"]:
                break
            n += 1
        self.note(
            bounded=0 < n < len(each),
            all=n == len(each) > 1,
            rows=any(a < b for a, b in zip(each[:n], each[1:n], strict=False)),
        )
        return self.fill(sight, order[:n])


class KLASS(Rule, of="klass"):
    cases = (
        dict(kl=0.0, history=1, threshold=0.25),
        dict(kl=0.01),
        dict(kl=0.05, threshold=0.5),
        dict(kl=0.3, history=3, threshold=0.375),
        dict(kl=10.0, history=1, threshold=0.25),
    )
    branches = frozenset({"stable", "unsure", "interrupted", "support", "skipped", "several"})

    def begin(self):
        self.last, self.still = {}, {}

    def accept(self, sight):
        for j, p in sight.share.items():
            before, had = self.last.get(j), self.still.get(j, 0)
            change = np.inf
            if before is not None and not (before[p > 0] == 0).any():
                change = sum(a * np.log(a / b) for a, b in zip(p, before, strict=True) if a > 0)
                change = max(change, 0.0)  # negative only by rounding
                self.note(support=(p == 0).any() and (before[p == 0] > 0).any())
            self.still[j] = had + 1 if change < self.knob["kl"] else 0
            self.note(interrupted=had >= self.knob["history"] and not self.still[j])
            self.last[j] = p
        stable = [j for j in sight.masked if self.still.get(j, 0) >= self.knob["history"]]
        sure = [j for j in stable if sight.confidence[j] > self.knob["threshold"]]
        self.note(
            stable=sure,
            unsure=set(stable) - set(sure),
            skipped=set(stable) - set(sight.open),
        )
        return self.fill(sight, sure)


class Calibrated(Rule, of="pc"):
    cases = ({}, dict(position=0.0), dict(position=0.05, alpha=0.5), dict(position=2.0))
    branches = frozenset({"bounded", "free"})

    def accept(self, sight):
        def score(j):
            rare = -np.log(self.frequency[sight.token[j]] + 1e-10)
            weight = np.exp(-self.knob["position"] * (j - sight.first))
            alpha, calibrated = self.knob["alpha"], float(sight.score(j)) * rare
            self.note(bounded=calibrated > alpha, free=0 < calibrated < alpha)
            return weight * min(calibrated, alpha)

        return sight.best(self.least, score)


class SlowFast(Rule, of="slowfast"):
    cases = (
        dict(threshold=0.5, low=0.25, cycles=3),
        dict(threshold=0.95, low=0.5, cycles=2),
        dict(threshold=0.75, low=0.0, cycles=64),
        dict(threshold=1.0, low=0.9, cycles=4),
        dict(threshold=0.9, low=0.1, cycles=1),
    )
    branches = frozenset(
        {
            "slow",
            "fast",
            "settled",
            "exhausted",
            "again",
            "blind",
            "beyond",
            "several",
            "filled",
        }
    )

    def begin(self):
        self.ends, self.until = [], None  # ends in sight in this slow phase; end of the stretch

    def accept(self, sight):
        stretch = [] if self.until is None else [j for j in sight.open if j <= self.until]
        self.note(again=self.until is not None and not stretch)
        among = stretch or sight.open
        sure = [j for j in among if sight.confidence[j] >= self.knob["threshold"]]
        if stretch:
            self.note(fast=True, beyond=len(stretch) < len(sight.open))
            limited = replace(sight, masked=stretch)
            return self.fill(limited, sure)
        self.until = None
        in_sight = [j for j in sight.open if sight.confidence[j] > self.knob["low"]]
        self.ends.append(max(in_sight, default=-1))
        settled = len(self.ends) > 1 and np.var(self.ends[-2:]) < 1
        exhausted = len(self.ends) == self.knob["cycles"]
        self.note(slow=True, settled=settled, exhausted=exhausted, blind=not in_sight)
        if settled or exhausted:
            self.until, self.ends = self.ends[-1], []
        return self.fill(sight, sure)


class WINO(Rule, of="wino"):
    cases = (
        dict(wide_in=0.375, narrow_out=0.5),
        dict(wide_in=0.6),
        dict(wide_in=0.0, narrow_out=1.0),
        dict(wide_in=1.0, narrow_out=0.875),
        dict(wide_in=0.0, narrow_out=0.0),
    )
    branches = frozenset({"filled", "several", "capped", "doubted", "spared", "kept"})

    def accept(self, sight):
        sure = [j for j in sight.open if sight.confidence[j] >= self.knob["wide_in"]]
        most = min(max(int(0.7 * len(sight.masked)), 5), 20)
        self.note(capped=len(sure) > most)
        return self.fill(sight, sorted(sure, key=lambda j: (-sight.score(j), j))[:most])

    def revise(self, sight, accepted, opinion):
        if sight.step == 0:
            return []
        block = {(j - sight.first) // sight.size for j in sight.masked}
        here = [j for j in sight.written if (j - sight.first) // sight.size in block]
        low = sorted((opinion[j], j) for j in here if opinion[j] < self.knob["narrow_out"])
        self.note(
            doubted=low and len(accepted) > 1,
            spared=len(low) >= len(accepted),
            kept=len(low) < len(here),
        )
        return [j for _, j in low[: len(accepted) - 1]]


def naive_prior(known, sigma: float):
    """Share of a Gaussian window that lies on known positions (d2Cache Eq. 3), (T,)."""
    at = np.arange(len(known))
    window = np.exp(-(np.arange(-500, 501) ** 2) / (2 * sigma**2)).sum()
    return (np.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2)) * known).sum(1) / window


def naive_prior_as_shipped(known, first: int, sigma: float):
    """Padded with one answer length of known positions before, and copies of its last one after."""
    answer = np.asarray(known[first:], float)
    long = np.concatenate((np.ones_like(answer), answer, np.full_like(answer, answer[-1])))
    middle = naive_prior(long, sigma)[len(answer) : 2 * len(answer)]
    return np.concatenate((np.ones(first), middle))


# --- random distributions -------------------------------------------------------------------------


class Source:
    """A row's proposals: distributions that mostly stay, and sometimes drift or jump."""

    def __init__(self, seed: int, b: int):
        self.rng = np.random.default_rng((seed, b))
        self.base = self.rng.normal(size=(ANSWER, WORDS))
        self.sharp = np.exp(self.rng.uniform(-1, 3, (ANSWER, 1)))

    def some(self, share: float, *more: int):
        return self.rng.random((ANSWER, *more)) < share

    def next(self):
        """Logits (G,V), tokens (G,), computed (G,), noise (G,), opinion (G,) for one step."""
        fresh = self.rng.normal(size=(2, ANSWER, WORDS))
        self.base = np.where(self.some(0.15, 1), fresh[0], self.base)
        self.base = np.where(self.some(0.4, 1), self.base + 0.1 * fresh[1], self.base)
        logits = self.base * self.sharp
        # as after top-p: at some positions a few tokens are left, at a few positions one
        out = self.some(0.2, WORDS) & self.some(0.3, 1) | self.some(0.15, 1)
        out &= logits < logits[:, :MASK].max(1, keepdims=True)
        logits[out] = -np.inf
        logits[:, MASK] = -np.inf
        lot = self.rng.random((ANSWER, WORDS))
        sampled = np.where(logits > -np.inf, lot, 0).argmax(1)
        tokens = np.where(self.some(0.1), sampled, logits.argmax(1))
        opinion = np.round(self.rng.random(ANSWER) * 8) / 8
        return logits, tokens, self.some(0.75), np.float32(self.rng.random(ANSWER)), opinion


class Opinion(Shadow):
    """A shadow block with given probabilities."""

    def __init__(self, share):
        self.share = share

    def probability(self):
        return self.share


def scene(seed: int, rows=(0, 1, 2), **settings) -> Canvas:
    """A padded batch; each row partly written, row 0 throughout its first block."""
    canvas = []
    for b in rows:
        rng = np.random.default_rng((seed, b, 1))
        tokens = rng.integers(0, END, PROMPT + ANSWER)
        masked = rng.random(ANSWER) < 0.8
        masked[:BLOCK] &= b != 0
        masked[BLOCK + 1] = True
        tokens[PROMPT:][masked] = MASK
        tokens[: (0, 2, 1)[b]] = MASK  # padding, as in a run
        canvas.append(torch.from_numpy(tokens))
    start = torch.tensor([(0, 2, 1)[b] for b in rows])
    return Canvas(torch.stack(canvas), start, PROMPT, BLOCK, MASK, END, padded=True, **settings)


@cache
def model_of_words(seed: int):
    """A model for `begin`: with even seeds it has token frequencies."""
    model = small_model(0, vocab=WORDS, mask_id=MASK, eos_id=END)
    if seed % 2 == 0:
        count = torch.arange(WORDS, dtype=torch.float32) ** 3
        model.frequency = count / count.sum()
    return model


@dataclass
class Turn:
    canvas: Canvas
    candidates: Candidates
    certainty: torch.Tensor  # (B,T) as the decoder returned it
    accepted: torch.Tensor
    doubted: torch.Tensor | None
    opinion: torch.Tensor


def play(decoder: Decoder, seed: int, rows=(0, 1, 2)):
    """A run of a decoder on random distributions, one Turn per step.

    Odd seeds round confidence to eighths, so that it ties and meets thresholds; seeds from 2 on
    use float32; seed 3 stops at end-of-text tokens.
    """
    canvas = scene(seed, rows, stop_at_eos=seed == 3)
    sources = [Source(seed, b) for b in rows]
    decoder.begin(model_of_words(seed), canvas)
    while canvas.live.any():
        drawn = [source.next() for source in sources]
        logits, tokens, computed, lots, opinion = (
            torch.from_numpy(np.stack(one)) for one in zip(*drawn, strict=True)
        )
        turn = propose(
            decoder,
            canvas,
            logits,
            tokens,
            computed,
            lots,
            rounded=seed % 2 == 1,
            dtype=torch.float32 if seed >= 2 else torch.float64,
        )
        opinion = torch.nn.functional.pad(opinion, (PROMPT, 0))
        for b in range(len(rows)):
            sight = see(canvas, turn.candidates, b)
            block = {(j - PROMPT) // BLOCK for j in sight.masked}
            away = [
                j
                for j in range(PROMPT + ANSWER)
                if j not in sight.written or (j - PROMPT) // BLOCK not in block
            ]
            opinion[b, away] = torch.inf
        turn.opinion = opinion
        turn.accepted = decoder.accept(canvas, turn.candidates)
        turn.doubted = decoder.revise(canvas, turn.accepted, Opinion(opinion))
        yield turn
        after = torch.where(turn.accepted, turn.candidates.tokens, canvas.tokens)
        if turn.doubted is not None:
            after = torch.where(turn.doubted, MASK, after)
        canvas = replace(canvas, tokens=after, step=canvas.step + 1)


def propose(decoder, canvas, logits, tokens, computed, lots, rounded=False, dtype=torch.float64):
    """Candidates (B,T) from proposals for the whole answer, laid out ragged as in a run."""
    pad = lambda x: torch.nn.functional.pad(x, (PROMPT, 0))
    masked = (canvas.tokens == MASK) & (torch.arange(PROMPT + ANSWER) >= PROMPT)
    computed = pad(computed) & masked & canvas.live[:, None]
    for b in range(len(computed)):
        left = int(masked[b].int().argmax())
        if canvas.live[b] and not (computed & canvas.block)[b].any():
            computed[b, left] = True
    at = [row.nonzero().flatten().tolist() for row in computed]
    wide = max(map(len, at))
    at = [(row + [(row or [PROMPT])[0]] * wide)[:wide] for row in at]
    target = torch.tensor(at)
    logits = torch.stack([one[row - PROMPT] for one, row in zip(logits, target, strict=True)])
    share = torch.from_numpy(softmax(logits.numpy()))
    chosen = pad(tokens).gather(1, target)
    probability = share.gather(2, chosen[..., None])[..., 0].to(dtype)
    logits = logits.to(dtype)
    certainty = torch.full(masked.shape, -torch.inf, dtype=dtype)
    certainty.scatter_(1, target, decoder.certainty(logits, probability))
    certainty[~computed] = -torch.inf
    confidence = certainty.mul(8).round().div(8) if rounded else certainty
    candidates = Candidates(
        tokens=torch.where(computed, pad(tokens), 0),
        confidence=confidence,
        density=decoder.prior(canvas),
        logits=logits,
        target=target,
        computed=computed,
        noise=pad(lots) if decoder.draws else None,
    )
    return Turn(canvas, candidates, certainty, None, None, None)


def positions(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


# --- every decoder equals its restatement ---------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_has_a_restatement(name):
    assert name in RULES, f"restate {name} here: a subclass of Rule with of={name!r}"


def follow(rules, canvas, candidates, accepted, certainty, within, case):
    """The rules, one per row, must agree with what was accepted; returns what each rule saw."""
    sights = []
    for b, rule in enumerate(rules):
        sight = see(canvas, candidates, b)
        where = f"{case}, step {canvas.step}, row {b}"
        for j, share in sight.share.items():
            want = rule.certainty(share, sight.token[j])
            assert abs(float(certainty[b, j]) - want) <= within, where
        want = sorted(rule.accept(sight)) if sight.masked else []
        assert positions(accepted[b]) == want, where
        sights.append(sight)
    return sights


def frequency_of(model):
    known = model.frequency is not None
    return model.frequency.double().numpy() if known else np.full(WORDS, 1 / WORDS)


def settings_of(name):
    for case in RULES[name].cases:
        for sigma in RULES[name].sigmas:
            for count in (1, 3):
                yield dict(case, sigma=sigma, tokens_per_step=count)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_follows_its_rule_on_random_distributions(name):
    met = set()
    for settings in settings_of(name):
        for seed in range(4):
            case = f"{settings}, seed {seed}"
            decoder = d2cache.make_decoder(name, **settings)
            known = frequency_of(model_of_words(seed))
            rules = [RULES[name](decoder.settings(), known) for _ in range(3)]
            for turn in play(decoder, seed):
                canvas, within = turn.canvas, 1e-5 if seed >= 2 else 1e-12
                for b, rule in enumerate(rules):
                    check_prior(rule, canvas, turn.candidates, b, case)
                sights = follow(
                    rules, canvas, turn.candidates, turn.accepted, turn.certainty, within, case
                )
                for b, (rule, sight) in enumerate(zip(rules, sights, strict=True)):
                    accepted = positions(turn.accepted[b])
                    want = rule.revise(sight, accepted, turn.opinion[b].numpy())
                    doubted = [] if turn.doubted is None else positions(turn.doubted[b])
                    assert doubted == sorted(want), f"{case}, step {canvas.step}, row {b}"
                    rule.wrote(accepted, canvas.step)
                    met |= rule.met
    assert met >= RULES[name].branches, f"never met: {RULES[name].branches - met}"


def check_prior(rule, canvas, candidates, b, case):
    width = rule.width()
    if not width:
        assert candidates.density is None, case
        return
    tokens, start = canvas.tokens[b].numpy(), int(canvas.start[b])
    known = (tokens != MASK) & (np.arange(len(tokens)) >= start)
    want = naive_prior(known, width)
    np.testing.assert_allclose(candidates.density[b].numpy(), want, atol=1e-6, err_msg=case)


CACHES = [p for p in POLICIES if p[0] in ("none", "d2") and "inflate_w" not in p[1]]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("policy", CACHES, ids=lambda p: "-".join([p[0], *p[1]]))
def test_a_decoder_follows_its_rule_in_a_run(name, policy):
    """With only some positions computed, top-p sampling, ragged prompts and blocks; for LLaDA's
    shape and for Dream's."""
    prompts = [random_prompt(n, n) for n in (6, 3, 5)]
    for seed, warm in ((0, {}), (1, dict(temperature=0.8, top_p=0.8, tokens_per_step=2))):
        model = small_model(seed, **(dict(shift=1, kv_heads=2) if seed else {}))
        model.frequency = torch.arange(SMALL.vocab).float().softmax(0)
        decoder = d2cache.make_decoder(name, **DECODER_KNOBS.get(name, {}), **warm)
        rules = [RULES[name](decoder.settings(), model.frequency.double().numpy()) for _ in prompts]
        steps = run(model, prompts, policy, decoder, gen_length=14, block_length=8, seed=seed)
        for step in steps:
            follow(
                rules,
                step.before,
                step.candidates,
                step.accepted,
                step.confidence,
                1e-9,
                f"seed {seed}",
            )


# --- what all must do -----------------------------------------------------------------------------

EVERY = [(name, seed) for name in DECODERS for seed in range(4)]


def made(name: str, **settings) -> Decoder:
    return d2cache.make_decoder(name, **DECODER_KNOBS.get(name, {}), **settings)


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_a_step_writes_only_eligible_computed_positions_and_makes_progress(name, seed):
    for turn in play(made(name), seed):
        for b in range(3):
            sight = see(turn.canvas, turn.candidates, b)
            written = set(positions(turn.accepted[b]))
            assert written <= set(sight.open)
            assert bool(written) == bool(sight.open)
            if turn.doubted is not None:
                assert len(positions(turn.doubted[b])) < max(len(written), 1)
        assert turn.canvas.step <= ANSWER, "each step writes at least one position"


@pytest.mark.parametrize("name", DECODERS)
def test_positions_outside_the_block_are_left_alone_even_with_a_confidence(name):
    """d2Cache's public code gives one to every mask, in rows that have ended too."""
    ended = 0
    for turn in play(made(name), seed=3):
        again = made(name, tokens_per_step=64)
        again.begin(model_of_words(3), turn.canvas)
        sure = torch.full_like(turn.candidates.confidence, 0.95)
        accepted = again.accept(turn.canvas, replace(turn.candidates, confidence=sure))
        for b in range(3):
            masked = see(turn.canvas, turn.candidates, b).masked
            assert set(positions(accepted[b])) <= set(masked)
            ended += not masked and bool(turn.canvas.masked[b].any())
    assert ended, "guard: a row ends with masks after its end"


@pytest.mark.parametrize(("name", "seed"), EVERY)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_first_step_writes_tokens_per_step_where_there_are_as_many(name, seed, count):
    turn = next(play(made(name, tokens_per_step=count), seed))
    for b in range(3):
        sight = see(turn.canvas, turn.candidates, b)
        assert len(positions(turn.accepted[b])) >= min(count, len(sight.open))


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_a_certainty_is_a_number_from_0_to_1(name, seed):
    for turn in play(made(name), seed):
        seen = turn.certainty[turn.candidates.computed]
        assert ((seen >= 0) & (seen <= 1)).all(), "also: not NaN"
        assert torch.isneginf(turn.certainty[~turn.candidates.computed]).all()
        density = turn.candidates.density
        assert density is None or ((density >= 0) & (density <= 1.0001)).all()


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_a_row_does_not_see_its_batch_mates(name, seed):
    together = list(play(made(name), seed))
    for b in range(3):
        alone = list(play(made(name), seed, rows=(b,)))
        for mine, own in zip(together, alone, strict=False):
            assert torch.equal(mine.canvas.tokens[b], own.canvas.tokens[0])
            assert torch.equal(mine.accepted[b], own.accepted[0])
        assert not any(mine.accepted[b].any() for mine in together[len(alone) :])


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_a_decoder_does_not_modify_its_inputs(name, seed):
    decoder, before = made(name), None
    for turn in play(decoder, seed):
        c = turn.candidates
        parts = [turn.canvas.tokens, c.tokens, c.confidence, c.logits, c.target, c.computed]
        parts += [x for x in (c.density, c.noise) if x is not None]
        copies = [x.clone() for x in parts]
        decoder.accept(turn.canvas, c)  # again, in the middle of a run
        decoder.revise(turn.canvas, turn.accepted, Opinion(turn.opinion))
        assert all(torch.equal(a, b) for a, b in zip(parts, copies, strict=True))
        assert before is None or not torch.equal(before, turn.canvas.tokens)
        before = turn.canvas.tokens


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_a_decoder_may_run_again(name, seed):
    """`begin` clears everything from the previous run."""
    decoder = made(name)
    first, second = ([t.accepted for t in play(decoder, seed)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ties_are_written_from_the_left(name, count):
    """Candidates that differ only in their position."""
    decoder, canvas = made(name, tokens_per_step=count), scene(1)
    decoder.begin(model_of_words(1), canvas)
    logits = torch.linspace(0, 3, WORDS, dtype=torch.float64).expand(3, ANSWER, -1).clone()
    logits[..., MASK] = -torch.inf
    tokens, lots = torch.full((3, ANSWER), 12), torch.full((3, ANSWER), 0.5)
    turn = propose(decoder, canvas, logits, tokens, torch.arange(ANSWER) % 4 != 2, lots)
    flat = replace(turn.candidates, density=None)
    accepted = decoder.accept(canvas, flat)
    for b in range(3):
        written, allowed = positions(accepted[b]), see(canvas, flat, b).open
        assert len(allowed) > 1 and written == allowed[: len(written)]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certainty_of_1_and_a_density_of_0_break_no_rule(name, dtype):
    """One token has all probability and the prior is 0: -inf times 0 would be NaN."""
    decoder, canvas = made(name), scene(2)
    decoder.begin(model_of_words(2), canvas)
    logits = torch.full((3, ANSWER, WORDS), -torch.inf, dtype=torch.float64)
    logits[..., 5], logits[:, ::2, 6] = 3e4, -3e4
    tokens, lots = torch.full((3, ANSWER), 5), torch.zeros(3, ANSWER)
    computed = torch.arange(ANSWER) % 3 != 1
    turn = propose(decoder, canvas, logits, tokens, computed, lots, dtype=dtype)
    assert (turn.certainty[turn.candidates.computed] == 1).all()
    zero = replace(turn.candidates, density=torch.zeros(canvas.tokens.shape))
    for _ in range(3):  # so that a rule that compares steps has something to compare
        accepted = decoder.accept(canvas, zero)
        for b in range(3):
            written, allowed = positions(accepted[b]), see(canvas, zero, b).open
            assert written and written == allowed[: len(written)]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(f"{x}" for x in p))
def test_a_decoder_fills_every_block_under_every_policy(name, policy):
    model, prompts = small_model(4), [random_prompt(5, 1), random_prompt(3, 2)]
    steps = run(model, prompts, policy, made(name), gen_length=8, block_length=3)
    opened = torch.zeros(2, dtype=torch.int64)
    for step in steps:
        masked = step.before.tokens == SMALL.mask_id
        masked[:, :5] = False
        assert not (step.accepted & ~masked).any()
        if not step.plan.as_shipped:
            assert not (step.accepted & ~step.candidates.computed).any()
        for b in range(2):
            blocks = {(j - 5) // 3 for j in positions(step.accepted[b])}
            assert len(blocks) == 1 or not masked[b].any(), "one block at a time"
            for block in blocks:
                assert block >= opened[b]
                opened[b] = block
    assert not (steps[-1].tokens[:, 5:] == SMALL.mask_id).any() and len(steps) <= 8


@pytest.mark.parametrize("name", DECODERS)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name):
    model, prompt = small_model(6), random_prompt(6)
    answers = [
        run(model, prompt, "none", made(name, temperature=1.0), gen_length=16, seed=seed)[
            -1
        ].after.tokens.tolist()
        for seed in (3, 3, 4)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("name", DECODERS)
def test_the_prior_may_be_padded_as_the_public_code_does(name):
    """Set by the decoder's knob or by the policy's plan."""
    turns = list(play(made(name, sigma=3.0), 0))
    for asked in ("knob", "plan"):
        decoder = made(name, sigma=3.0, as_shipped=asked == "knob")
        rule = Adaptive(decoder.settings()) if name == "adaptive" else Rule(decoder.settings())
        rules = [rule, *(type(rule)(decoder.settings()) for _ in range(2))]
        decoder.begin(model_of_words(0), turns[0].canvas)
        for turn in turns:
            got = decoder.prior(turn.canvas, asked == "plan")
            for b, rule in enumerate(rules):
                known = turn.canvas.tokens[b].numpy() != MASK
                want = naive_prior_as_shipped(known, PROMPT, rule.width())
                np.testing.assert_allclose(got[b].numpy(), want, atol=1e-6)
                rule.wrote(positions(turn.accepted[b]), turn.canvas.step)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_mask_token_is_never_proposed(name, temperature):
    model = small_model(7)
    model.head.weight.data[SMALL.mask_id] = 30 * model.head.weight.data[3]
    for step in run(
        model, random_prompt(6), "none", made(name, temperature=temperature), gen_length=9
    ):
        masked = step.before.masked
        assert (step.candidates.tokens[masked] != SMALL.mask_id).all()
        assert torch.isneginf(step.logits[..., SMALL.mask_id]).all()
        assert (step.after.tokens[step.accepted] != SMALL.mask_id).all()


# --- single rules in a run ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["none", "d2"])
def test_the_prior_changes_the_decode_order(policy):
    model, prompt = small_model(5), random_prompt(6)
    orders = []
    for sigma in (0.0, 2.0):
        steps = run(model, prompt, policy, ("confidence", {"sigma": sigma}), gen_length=16)
        orders.append([int(s.accepted.nonzero()[0, 1]) for s in steps])
        for step in steps:
            assert (step.candidates.density is None) == (sigma == 0)
    assert orders[0] != orders[1]
    jumps = [np.abs(np.diff(o)).mean() for o in orders]
    assert jumps[1] < jumps[0], "the prior favours positions close to known ones"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_tokens_per_step_sets_the_number_of_steps(count):
    steps = run(
        small_model(5),
        random_prompt(6),
        "none",
        ("confidence", {"tokens_per_step": count}),
        gen_length=12,
        block_length=6,
    )
    assert len(steps) == 2 * -(-6 // count)


def test_random_numbers_are_uniform_and_new_in_each_step():
    """Each position of the block is as likely as any other, whatever its confidence."""
    n, length = 600, 6
    steps = run(
        small_model(6),
        random_prompt(5).expand(n, -1),
        "none",
        "random",
        gen_length=length,
        seed=range(n),
    )
    assert steps[0].candidates.density is None, "no prior by default"
    where = torch.stack([s.accepted[:, 5:].int().argmax(1) for s in steps], 1)  # (n, steps)
    assert torch.equal(where.sort(1).values, torch.arange(length).expand(n, -1))
    for step in range(length):
        count = torch.bincount(where[:, step], minlength=length).double()
        chi_square = ((count - n / length) ** 2 / (n / length)).sum()
        assert chi_square < 5 + 4 * 10**0.5
    after_first = where[where[:, 0] == 0][:, 1]
    assert len(set(after_first.tolist())) == length - 1


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize(
    ("masks", "most"),
    [(1, 1), (4, 4), (6, 5), (8, 5), (9, 6), (20, 14), (28, 19), (29, 20), (30, 20), (60, 20)],
)
def test_wino_writes_at_most_seven_tenths_of_the_masks_but_5_to_20(masks, most, prior):
    """All are sure; the score decides which of them are written."""
    rng = np.random.default_rng(masks)
    tokens = torch.zeros(1, 61, dtype=torch.int64)
    target = torch.from_numpy(1 + rng.permutation(60)[:masks]).sort().values[None]
    tokens[0, target[0]] = MASK
    canvas = Canvas(tokens, torch.zeros(1, dtype=torch.int64), 1, 60, MASK, END)
    values = torch.from_numpy(rng.uniform(0.8, 1, (2, 61)))
    confidence = values[:1].masked_fill(tokens != MASK, -torch.inf)
    density = values[1:] if prior else None
    candidates = Candidates(
        tokens, confidence, density, torch.zeros(1, masks, WORDS), target, tokens == MASK
    )
    accepted = positions(d2cache.make_decoder("wino").accept(canvas, candidates)[0])
    order = sorted(target[0].tolist(), key=see(canvas, candidates, 0).score, reverse=True)
    assert accepted == sorted(order[:most])


def test_a_distant_position_is_ranked_although_its_weight_rounds_to_zero():
    """exp(-lambda i) of position 200 is 0 in every floating-point format."""
    decoder = d2cache.make_decoder("pc", position=10.0)
    assert not decoder.sigma, "the rule has its own prior"
    tokens = torch.zeros(1, 401, dtype=torch.int64)
    tokens[0, 200:] = MASK
    canvas = Canvas(tokens, torch.zeros(1, dtype=torch.int64), 1, 400, MASK, END)
    decoder.begin(model_of_words(1), canvas)
    target = torch.tensor([[400, 390, 395]])
    confidence = torch.full((1, 401), -torch.inf).scatter(1, target, torch.ones(1, 3))
    candidates = Candidates(
        tokens, confidence, None, torch.zeros(1, 3, WORDS), target, confidence > 0
    )
    assert positions(decoder.accept(canvas, candidates)[0]) == [390]


def test_a_run_samples_each_position_from_the_models_distribution():
    """The first candidates of many seeds against the logits of the first step."""
    model, prompt, n = small_model(6), random_prompt(5), 1500
    first = next(
        d2cache.generate(
            model,
            prompt.expand(n, -1),
            "none",
            d2cache.make_decoder("confidence", temperature=1.0),
            gen_length=3,
            seed=range(n),
        )
    )
    for j in range(3):
        want = first.logits[0, j].softmax(-1)
        count = torch.bincount(first.candidates.tokens[:, 5 + j], minlength=60).double()
        common = want * n > 8
        chi_square = ((count - n * want) ** 2 / (n * want))[common].sum()
        degrees = int(common.sum())
        assert degrees > 4
        assert chi_square < degrees + 4 * (2 * degrees) ** 0.5
    pairs = first.candidates.tokens[:, 5:7]
    same = (pairs[:, 0] == pairs[:, 1]).double().mean()
    chance = (first.logits[0, 0].softmax(-1) * first.logits[0, 1].softmax(-1)).sum()
    assert abs(same - chance) < 0.05, "positions draw independently"


@dataclass
class Reluctant(Confidence):
    """Writes nothing in the given rows."""

    rows: tuple[int, ...] = ()

    def accept(self, canvas, candidates):
        accepted = super().accept(canvas, candidates)
        accepted[list(self.rows)] = False
        return accepted


@pytest.mark.parametrize("rows", [(0,), (0, 1)])
def test_a_decoder_that_writes_nothing_in_a_row_is_named_in_an_error(rows):
    prompts = random_prompt(4).expand(2, -1)
    with pytest.raises(RuntimeError, match=r"^step 0 wrote nothing: the decoder must accept"):
        run(small_model(0), prompts, "none", Reluctant(rows=rows), gen_length=4)
