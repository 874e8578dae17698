"""The first pass of every policy against the same model in float64."""

import functools

import pytest
import torch
from lab import POLICIES, random_prompt, small_model

import d2cache

LARGE = 512.0  # of a query and a key: their product is beyond float16
NAMES = sorted({name for name, _ in POLICIES} - {"none"})
SEEDS = range(3)


def biased(seed: int, large: bool):
    """large: queries and keys have a large part in common, in the pair of lanes that hardly turns;
    it adds nearly the same to the scores of all keys, so that attention stays as it was."""
    model = small_model(seed, qkv_bias=True, rope_theta=1e6)
    c, width = model.config, model.config.head_width
    for block in model.blocks if large else []:
        projected = block.qkv_proj
        for first in range(0, (c.heads + c.kv_heads) * width, width):
            pair = [first + width // 2 - 1, first + width - 1]
            projected.weight.data[pair] = 0
            projected.bias.data[pair] = torch.tensor([LARGE, 0.0], dtype=torch.float64)
    return model


def first_logits(model, policy: str, seed: int):
    """Of the first block, which all policies predict; without [MASK]'s."""
    steps = d2cache.generate(
        model, random_prompt(30, seed), policy, gen_length=10, block_length=10, eager=True
    )
    logits = next(steps).logits.double()[..., : model.config.mask_id]
    steps.close()
    return logits


@functools.cache
def error(policy: str, dtype: torch.dtype, large: bool) -> float:
    """Relative, the mean of a few models and prompts."""
    total = 0.0
    for seed in SEEDS:
        wanted = exact(seed, large)
        got = first_logits(biased(seed, large).to(dtype), policy, seed)
        total += float((got - wanted).norm() / wanted.norm())
    return total / len(SEEDS)


@functools.cache
def exact(seed: int, large: bool):
    return first_logits(biased(seed, large), "none", seed)


@pytest.mark.parametrize("large", [False, True], ids=["biases", "large-biases"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", NAMES)
def test_the_first_pass_is_as_exact_as_without_a_cache(policy, dtype, large):
    plain = error("none", dtype, large)
    assert plain < 0.1, "guard: none itself must be near"
    assert error(policy, dtype, large) <= 1.1 * plain
