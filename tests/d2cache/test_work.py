"""The work that a step counts, against torch's own counter."""

import pytest
import torch
from lab import POLICIES, random_prompt, small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import d2cache

FAMILIES = [{}, dict(kv_heads=2, qkv_bias=True, shift=1)]


def counted(steps):
    """Each step, with the FLOPs that torch counted while it was made: of all but convolutions."""
    # the fused attention of a CPU is unknown to the counter
    with sdpa_kernel(SDPBackend.MATH):
        while True:
            with FlopCounterMode(display=False) as counter:
                step = next(steps, None)
            if step is None:
                return
            found = counter.get_flop_counts()["Global"]
            yield step, sum(n for op, n in found.items() if op != torch.ops.aten.convolution)


@pytest.mark.parametrize("changes", FAMILIES, ids=["llada", "dream"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
@pytest.mark.parametrize("decoder", ["confidence", "wino"])
def test_flops_are_those_that_torch_counts(policy, decoder, changes):
    """To the last one, but for what `ModelConfig.flops` leaves out: d2's sweep over its maps, and
    the density that it shares with decoders, a convolution."""
    model, steps = small_model(**changes), 0
    settings = dict(gen_length=20, block_length=10)
    run = d2cache.generate(
        model, random_prompt(9, 1), d2cache.make_policy(policy[0], **policy[1]), decoder, **settings
    )
    for step, found in counted(run):
        c, rows, length = model.config, step.rows.index.shape[1], step.before.tokens.shape[1]
        sweep = 2 * c.layers * rows * length if policy[0] == "d2" else 0
        assert c.flops(*step.work[0].tolist(), int(step.predicted[0])) == found - sweep, step.index
        steps += 1
    assert steps > 5
