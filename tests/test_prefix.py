"""Fast-dLLM's two caches: full passes only where a block opens, else the block and its tail."""

import numpy as np
import pytest
from lab import random_prompt, small_model

import d2cache

PROMPT, GEN = 7, 24


def record(policy, block_length, **knobs):
    model = small_model(3)
    decoder = d2cache.make_decoder("threshold", **{"threshold": 1.0, "sigma": 0.0} | knobs)
    steps = d2cache.generate(
        model, random_prompt(PROMPT, 3), policy, decoder, gen_length=GEN, block_length=block_length
    )
    return d2cache.Trace.record(steps)


@pytest.mark.parametrize("policy", ["prefix", "dual"])
def test_blocks_of_one_position_are_all_full_passes(policy):
    cached, none = record(policy, 1), record("none", 1)
    assert np.array_equal(cached.confidence, none.confidence) and cached.recomputed.all()


@pytest.mark.parametrize("policy", ["prefix", "dual"])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_only_the_step_that_opens_a_block_is_a_full_pass(policy, tokens_per_step):
    size = 8
    trace = record(policy, size, tokens_per_step=tokens_per_step)
    opened = None
    for s, recomputed in enumerate(trace.recomputed):
        masked = np.flatnonzero(trace.tokens[s, PROMPT:] == trace.run["shape"]["mask_id"])
        start = PROMPT + masked[0] // size * size
        want = np.zeros(PROMPT + GEN, bool)
        want[start : start + size if policy == "dual" else None] = True
        if start != opened:
            want[:] = True
        opened = start
        assert np.array_equal(recomputed, want), s
    assert 0 < trace.totals["hit_rate"]


@pytest.mark.parametrize("policy", ["prefix", "dual"])
def test_a_block_finished_by_its_full_pass_needs_no_other(policy):
    trace = record(policy, 8, threshold=0.0)
    assert len(trace.seconds) == 3 and trace.recomputed.all()


@pytest.mark.parametrize("policy", ["prefix", "dual"])
def test_what_is_reused_is_stale(policy):
    cached, none = record(policy, 8), record("none", 8)
    a, b = cached.confidence[1:7], none.confidence[1:7]
    both = np.isfinite(a) & np.isfinite(b)
    assert np.abs(a[both] - b[both]).max() > 1e-3
