"""d2Cache: its two stages against short restatements, and the limits where it is no cache."""

import pytest
import torch
from lab import (
    SMALL,
    Reference,
    assert_same_confidence,
    confidence_of,
    confidences,
    naive_density,
    random_prompt,
    run,
    small_model,
)

from d2cache.canvas import Why
from d2cache.generate import generate
from d2cache.policies import make_policy

MASK = SMALL.mask_id


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}])
@pytest.mark.parametrize("block_length", [None, 4])
def test_selecting_everything_is_no_cache(changes, block_length):
    """With both stages wide open, every step has the same logits as without a cache."""
    model, prompts = small_model(20, **changes), [random_prompt(n, n) for n in (5, 8)]
    everything = ("d2", dict(current_k=64, rollout_p=1.0))
    settings = dict(gen_length=12, block_length=block_length)
    prior = dict(sigma=4.0)
    cached = run(model, prompts, everything, ("confidence", prior), **settings)
    plain = run(model, prompts, "none", ("confidence", prior), **settings)
    assert len(cached) == len(plain)
    assert_same_confidence(confidences(cached), confidences(plain), 1e-10)
    for a, b in zip(cached, plain, strict=True):
        kept = torch.arange(60) != MASK
        torch.testing.assert_close(a.logits[..., kept], b.logits[..., kept], rtol=0, atol=1e-9)
        assert torch.equal(a.after.tokens, b.after.tokens)


@pytest.mark.parametrize(
    "knobs",
    [
        dict(current_k=3, rollout_p=0.1),
        dict(current_k=3, rollout_p=0.1, as_shipped=True),
        dict(current_k=64, rollout_p=0.0),
    ],
)
def test_small_knobs_are_a_cache(knobs):
    """A guard for the tests above and for every comparison with no cache."""
    model, prompt = small_model(21), random_prompt(10)
    cached = run(model, prompt, ("d2", knobs), gen_length=14)
    plain = run(model, prompt, "none", gen_length=14)
    rows = [int(s.rows.valid.sum()) for s in cached]
    assert rows[0] == 24 and all(r < 24 for r in rows[1:]) and min(rows) <= 8
    gap = 0.0
    for a, b in zip(cached, plain, strict=True):
        if not torch.equal(a.before.tokens, b.before.tokens):
            break
        pair = torch.stack((a.candidates.confidence, b.candidates.confidence))
        seen = (pair > -torch.inf).all(0)
        if not knobs.get("as_shipped"):
            gap = max(gap, float((pair[0] - pair[1])[seen].abs().max()))
        else:
            computed = seen & a.plan.predict
            gap = max(gap, float((pair[0] - pair[1])[computed].abs().max()))
    assert gap > 1e-3


def smallest_beyond(mass: dict, p: float) -> set:
    """Heaviest positions first until they hold more than p; none at p = 0, all at p = 1."""
    if p <= 0 or p >= 1:
        return set(mass) if p >= 1 else set()
    taken, held, whole = set(), 0.0, sum(mass.values())
    for j in sorted(mass, key=lambda j: -mass[j]):
        if held > p * whole:
            break
        taken.add(j)
        held += mass[j]
    return taken


def longest_within(mass: dict, p: float) -> set:
    """Heaviest positions first while they hold at most p, at least one: the shipped rule."""
    order, whole = sorted(mass, key=lambda j: -mass[j]), sum(mass.values())
    held = [sum(mass[j] for j in order[: n + 1]) / whole for n in range(len(order))]
    return set(order[: max(1, sum(h <= p for h in held))])


class Retold:
    """The rules for one row, over answer positions 0..G-1, from the paper and its code."""

    def __init__(self, prompt: int, gen: int, block: int, knobs: dict):
        self.prompt, self.gen, self.block, self.knobs = prompt, gen, block, knobs
        self.last = {}

    def next_reasons(self, step, b, start):
        """Reasons {position: Why} of the step that follows `step`; positions of the canvas."""
        p, k, shipped = self.prompt, self.knobs["current_k"], self.knobs.get("as_shipped")
        before = step.before.tokens[b, p:].tolist()
        after = step.after.tokens[b, p:].tolist()
        computed = set(step.rows.index[b][step.rows.valid[b]].tolist())
        for i in range(self.gen):
            if before[i] == MASK and p + i in computed and (step.index == 0 or not shipped):
                self.last[i] = float(step.candidates.confidence[b, p + i])
        masked = [i for i in range(self.gen) if after[i] == MASK]
        known = [t != MASK for t in after]
        if shipped:
            padded = [True] * self.gen + known + [known[-1]] * self.gen
            density = naive_density(padded, self.knobs["sigma"])[self.gen : 2 * self.gen]
        else:
            density = naive_density([True] * (p - start) + known, self.knobs["sigma"])[p - start :]
        score = {i: self.last[i] * density[i] for i in masked}
        size = self.block
        of = before if shipped else after
        first = next((i for i in range(self.gen) if of[i] == MASK), 0)
        inside = {i for i in masked if i // self.block == first // self.block}
        if shipped:
            size = sum(before[i] == MASK and i // size == first // size for i in range(self.gen))
        reach = masked[k - 1] if len(masked) >= k else self.gen - 1
        end = (reach // size + 1) * size
        window = [i for i in masked if first <= i < end]
        window.sort(key=lambda i: (i not in inside, -score[i], i))
        chosen = {p + i for i in window[:k]}
        written = {p + i for i in range(self.gen) if before[i] == MASK != after[i]}
        others = set(range(start, p + self.gen)) - chosen - written
        mass = {j: float(step.rollout[b, j]) for j in others}
        rule = longest_within if shipped else smallest_beyond
        rolled = rule(mass, self.knobs["rollout_p"]) if mass else set()
        taken = sorted(chosen | written | rolled)
        gaps = set()
        for a, z in zip(taken, taken[1:], strict=False):
            if z - a <= self.knobs.get("inflate_w", 0):
                gaps |= set(range(a + 1, z))
        why = dict.fromkeys(taken, 0) | dict.fromkeys(gaps, int(Why.GAP))
        for positions, reason in (
            (chosen, Why.CHOSEN),
            (written, Why.WRITTEN),
            (rolled, Why.ROLLOUT),
        ):
            for j in positions:
                why[j] |= int(reason)
        return why


@pytest.mark.parametrize(
    "knobs",
    [
        dict(current_k=3, rollout_p=0.1, sigma=3.0),
        dict(current_k=5, rollout_p=0.35, sigma=1.5, inflate_w=3),
        dict(current_k=4, rollout_p=0.05, sigma=10.0, inflate_w=2),
        dict(current_k=2, rollout_p=0.0, sigma=3.0, inflate_w=6),
        dict(current_k=3, rollout_p=0.15, sigma=3.0, as_shipped=True),
        dict(current_k=4, rollout_p=0.3, sigma=2.0, inflate_w=3, as_shipped=True),
    ],
)
@pytest.mark.parametrize("block_length", [16, 5])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("decoder", ["confidence", "threshold"])
def test_each_plan_follows_the_rules(knobs, block_length, seed, decoder):
    """A padded batch of three: reasons, refreshed rows and predictions of every step.

    The threshold makes the rows advance at different speeds.
    """
    model, lengths = small_model(30 + seed), (4, 9, 7)
    prompts = [random_prompt(n, n + seed) for n in lengths]
    told = [Retold(9, 16, block_length, knobs) for _ in prompts]
    pace = dict(tokens_per_step=2) if decoder == "confidence" else dict(threshold=0.35)
    steps = run(
        model,
        prompts,
        ("d2", knobs),
        (decoder, dict(sigma=3.0, **pace)),
        gen_length=16,
        block_length=block_length,
    )
    for step, following in zip(steps, steps[1:], strict=False):
        for b in range(3):
            if not following.before.live[b]:
                continue
            want = told[b].next_reasons(step, b, 9 - lengths[b])
            got = {
                j: int(following.plan.why[b, j])
                for j in following.plan.why[b].nonzero().flatten().tolist()
            }
            assert got == want, f"step {following.index}, row {b}"
            masked = {j for j in want if following.before.tokens[b, j] == MASK}
            assert set(following.plan.predict[b].nonzero().flatten().tolist()) == masked
            assert set(following.plan.refresh[b].nonzero().flatten().tolist()) == set(want)


def test_a_live_confidence_is_the_one_of_the_last_computation():
    """By default, confidence is updated whenever it is computed; as shipped, only in step 0."""
    model, prompt = small_model(22), random_prompt(6)
    for as_shipped in (False, True):
        policy = make_policy("d2", current_k=4, rollout_p=0.2, as_shipped=as_shipped)
        first, last, moved = None, None, 0
        for step in generate(model, prompt, policy, gen_length=12):
            seen = step.candidates.confidence
            if first is None:
                first = last = torch.where(seen > -torch.inf, seen, policy.confidence)
            computed = step.plan.predict
            moved += int((computed & ((seen - last).abs() > 1e-3)).sum())
            last = torch.where(computed, seen, last)
            want = first if as_shipped else last
            masked = step.before.masked
            assert torch.equal(policy.confidence[masked], want[masked])
        assert moved > 5, "guard: confidences must move during the run"


@pytest.mark.parametrize("block_length", [None, 6])
def test_a_written_token_is_recomputed_exactly_once_in_the_next_step(block_length):
    model, prompt = small_model(23), random_prompt(6)
    steps = run(
        model,
        prompt,
        ("d2", dict(current_k=3, rollout_p=0.0)),
        gen_length=14,
        block_length=block_length,
    )
    for before, step in zip(steps, steps[1:], strict=False):
        written = step.plan.why & int(Why.WRITTEN) > 0
        assert torch.equal(written, before.accepted)
    for i, step in enumerate(steps):
        for later, follower in enumerate(steps[i + 1 :]):
            again = follower.plan.refresh & step.accepted
            assert bool(again.any()) == (later == 0)


@pytest.mark.parametrize("tokens_per_step", [1, 3, 8])
def test_a_position_that_was_not_computed_is_never_written(tokens_per_step):
    model, prompt = small_model(24), random_prompt(6)
    steps = run(
        model,
        prompt,
        ("d2", dict(current_k=2, rollout_p=0.1)),
        ("confidence", dict(tokens_per_step=tokens_per_step)),
        gen_length=14,
    )
    fewer = 0
    for step in steps:
        missing = step.before.masked & ~step.plan.predict
        assert torch.isneginf(step.candidates.confidence[missing]).all()
        assert not (step.accepted & ~step.plan.predict).any()
        fewer += int(step.accepted.sum() < min(tokens_per_step, int(step.before.masked.sum())))
    if tokens_per_step == 8:
        assert fewer, "guard: there must be more to write than was computed"


def test_as_shipped_an_uncomputed_position_has_confidence_one_over_v_and_can_be_written():
    model, prompt = small_model(24), random_prompt(6)
    steps = run(
        model,
        prompt,
        ("d2", dict(current_k=2, rollout_p=0.1, as_shipped=True)),
        ("confidence", dict(tokens_per_step=6)),
        gen_length=14,
    )
    garbage = 0
    for step in steps:
        missing = step.before.masked & ~step.plan.predict
        assert (step.candidates.confidence[missing] == 1 / 60).all()
        assert (step.candidates.tokens[missing] == 0).all()
        garbage += int((step.accepted & missing).sum())
        assert (step.after.tokens[step.accepted & missing] == 0).all()
    assert garbage > 0


def test_as_shipped_rows_may_finish_at_different_steps():
    """A finished row has no mask left in its current block; the others go on."""
    prompts = [random_prompt(5, s) for s in range(4)]
    steps = run(
        small_model(8),
        prompts,
        ("d2", dict(current_k=4, as_shipped=True)),
        ("threshold", dict(threshold=0.3)),
        gen_length=10,
        block_length=5,
    )
    assert len({tuple(s.before.live.tolist()) for s in steps}) > 1, "guard"
    assert (steps[-1].after.tokens != MASK).all()


def test_the_current_block_is_computed_even_if_it_is_the_least_certain():
    """Without its priority, later blocks of higher confidence would take all k places."""
    model, prompt = small_model(25), random_prompt(4)
    policy = make_policy("d2", current_k=2, rollout_p=0.0, sigma=50.0)
    observe = policy.observe

    def doubting(canvas, step):
        first = (canvas.position < 4 + 6) & canvas.masked
        step.candidates.confidence[first & (step.candidates.confidence > 0)] = 1e-9
        observe(canvas, step)

    policy.observe = doubting
    for step in generate(model, prompt, policy, gen_length=18, block_length=6):
        open_block = step.before.masked & step.before.block
        assert (open_block & step.plan.predict).any()


def test_only_stale_rows_differ_from_no_cache():
    """Over d2's own rows the reference gives d2's numbers, over all rows different numbers."""
    model, prompt = small_model(26), random_prompt(8)
    cache, length = Reference(model, 20), 20
    stale = 0.0
    for step in run(model, prompt, ("d2", dict(current_k=3, rollout_p=0.1)), gen_length=12):
        tokens, rows = step.before.tokens[0], step.rows.index[0]
        _, own = confidence_of(cache.forward(tokens, rows)[0], MASK)
        exact_logits, _ = Reference(model, length).forward(tokens, torch.arange(length))
        _, exact = confidence_of(exact_logits, MASK)
        predicted = step.plan.predict[0, rows]
        got = step.candidates.confidence[0, rows][predicted]
        torch.testing.assert_close(got, own[predicted], rtol=0, atol=1e-10)
        stale = max(stale, float((got - exact[rows][predicted]).abs().max()))
    assert stale > 1e-2
