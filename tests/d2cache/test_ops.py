"""Each rule against a restatement by loops or by brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch
from lab import naive_density

from d2cache import ops


def random_mask(shape, seed: int, share: float = 0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def random_mass(shape, seed: int):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_density_is_the_double_loop_of_the_paper(sigma, seed):
    known = random_mask((2, 23), seed, 0.4)
    density = ops.certainty_density(known, sigma)
    for b in range(2):
        want = torch.tensor(naive_density(known[b].tolist(), sigma))
        torch.testing.assert_close(density[b], want, rtol=0, atol=1e-6)


def test_density_is_a_share_and_edges_count_as_unknown():
    everything = ops.certainty_density(torch.ones(1, 200, dtype=torch.bool), 4.0)[0]
    assert (everything <= 1).all() and everything[100] > 1 - 1e-6
    assert abs(everything[0] - 0.55) < 0.01, "half the window, and the position itself"
    assert (ops.certainty_density(torch.zeros(1, 50, dtype=torch.bool), 4.0) == 0).all()


def test_shipped_density_imagines_a_known_left_and_repeats_the_last_position():
    known = torch.tensor([[True] * 3 + [False] * 39 + [True]])  # 3 prompt, 40 answer positions
    got = ops.certainty_density_as_shipped(known, 3, 10.0)[0]
    answer = known[0, 3:].tolist()
    want = naive_density([True] * 40 + answer + [answer[-1]] * 40, 10.0)[40:80]
    assert got[:3].tolist() == [1, 1, 1]
    torch.testing.assert_close(got[3:], torch.tensor(want), rtol=0, atol=1e-6)
    empty = torch.tensor([[True] * 3 + [False] * 64])
    published = torch.tensor([0.480, 0.440, 0.401, 0.363])
    first = ops.certainty_density_as_shipped(empty, 3, 10.0)[0, 3:7]
    torch.testing.assert_close(first, published, rtol=0, atol=6e-4)


def test_top_k_takes_the_highest_and_ties_go_left():
    score = torch.tensor([[0.5, 1.0, 1.0, 0.2, 1.0, 1.0], [0.1, 0.9, 0.3, 0.9, 0.9, 0.0]])
    allowed = torch.tensor([[True, False, True, True, True, True], [True] * 6])
    two = ops.top_k_mask(score, allowed, 2)
    assert two.nonzero().tolist() == [[0, 2], [0, 4], [1, 1], [1, 3]]
    assert torch.equal(ops.top_k_mask(score, allowed, 50), allowed)


@pytest.mark.parametrize("size", [17, 300])
def test_many_equal_scores_are_taken_from_the_left(size):
    picked = ops.top_k_mask(torch.ones(1, size), torch.ones(1, size, dtype=torch.bool), 5)
    assert picked[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_top_k_never_takes_minus_infinity():
    score = torch.tensor([[-torch.inf, 0.3, -torch.inf]])
    assert ops.top_k_mask(score, torch.ones(1, 3, dtype=torch.bool), 2).tolist() == [
        [False, True, False]
    ]


@pytest.mark.parametrize("k", [1, 3, 6, 20])
@pytest.mark.parametrize("prompt", [0, 4])
def test_the_search_ends_with_the_block_of_the_kth_mask_in_each_row(k, prompt):
    masked = random_mask((4, prompt + 13), k, 0.4) & (torch.arange(prompt + 13) >= prompt)
    at, size = torch.arange(prompt + 13) - prompt, torch.tensor([[5], [5], [3], [4]])
    first = masked.int().argmax(1, keepdim=True) - prompt
    inside = (at >= 0) & (at // size == first // size)
    window = ops.search_window(masked, inside, at, size, k)
    for b in range(4):
        masks, n = at[masked[b]].tolist(), int(size[b])
        last = masks[k - 1] if len(masks) >= k else 12
        want = [m for m in masks if masks[0] // n * n <= m < (last // n + 1) * n]
        assert at[window[b]].tolist() == want


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("seed", range(6))
def test_nucleus_is_the_smallest_set_beyond_p(p, seed):
    """Brute force over all sets: none smaller holds more than p, and it is the heaviest of its
    size."""
    mass, candidates = random_mass((2, 9), seed) ** 3, random_mask((2, 9), seed + 50, 0.8)
    chosen = ops.nucleus(mass, candidates, p)
    for b in range(2):
        share = {int(i): float(mass[b, i]) for i in candidates[b].nonzero()}
        limit = p * sum(share.values())
        sets = (s for n in range(1, 10) for s in combinations(share, n))
        reach = [s for s in sets if sum(share[i] for i in s) > limit]
        fewest = min(map(len, reach))
        best = max((s for s in reach if len(s) == fewest), key=lambda s: sum(share[i] for i in s))
        assert chosen[b].nonzero().flatten().tolist() == sorted(best)


def test_nucleus_at_exactly_p_takes_one_more():
    mass, every = torch.tensor([[0.5, 0.25, 0.25]]), torch.ones(1, 3, dtype=torch.bool)
    assert ops.nucleus(mass, every, 0.5).tolist() == [[True, True, False]]
    assert ops.nucleus_within(mass, every, 0.5).tolist() == [[True, False, False]]
    assert ops.nucleus_within(mass, every, 0.75).tolist() == [[True, True, False]]


def test_nucleus_at_its_ends():
    mass, some = random_mass((1, 6), 0), torch.tensor([[True, False, True, True, False, True]])
    assert not ops.nucleus(mass, some, 0.0).any()
    assert torch.equal(ops.nucleus(mass, some, 1.0), some)
    assert not ops.nucleus(mass, torch.zeros_like(some), 0.5).any()
    assert not ops.nucleus_within(mass, torch.zeros_like(some), 0.5).any()


@pytest.mark.parametrize("seed", range(4))
def test_shipped_nucleus_is_the_longest_prefix_within_p_and_at_least_one(seed):
    mass, candidates = random_mass((2, 9), seed), random_mask((2, 9), seed + 9, 0.8)
    for p in (0.01, 0.3, 0.7):
        chosen = ops.nucleus_within(mass, candidates, p)
        for b in range(2):
            order = sorted(candidates[b].nonzero().flatten().tolist(), key=lambda i: -mass[b, i])
            whole, used, want = float(mass[b, order].sum()), 0.0, order[:1]
            for n, i in enumerate(order, 1):
                used += float(mass[b, i]) / whole
                if used <= p:
                    want = order[:n]
            assert chosen[b].nonzero().flatten().tolist() == sorted(want)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 64])
@pytest.mark.parametrize("seed", range(4))
def test_gaps_are_filled_up_to_the_width_and_never_beyond_the_ends(width, seed):
    selected = random_mask((3, 24), seed, 0.2)
    filled = ops.fill_gaps(selected, width)
    for b in range(3):
        at = selected[b].nonzero().flatten().tolist()
        want = set(at)
        for left, right in zip(at, at[1:], strict=False):
            if right - left <= width:
                want |= set(range(left, right))
        assert set(filled[b].nonzero().flatten().tolist()) == want


def test_attention_map_is_softmax_attention_with_its_mean_over_heads():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, h, n, 6, generator=rng, dtype=torch.float64)
        for h, n in ((4, 3), (2, 7), (2, 7))
    )
    keys = torch.ones(2, 7, dtype=torch.bool)
    keys[1, :2] = False
    out, mean = ops.attention_map(q, k, v, keys)
    for b in range(2):
        total = 0
        for h in range(4):
            score = q[b, h] @ k[b, h // 2].T / 6**0.5
            score[:, ~keys[b]] = -torch.inf
            share = score.exp() / score.exp().sum(-1, keepdim=True)
            torch.testing.assert_close(out[b, h], share @ v[b, h // 2], rtol=0, atol=1e-12)
            total = total + share / 4
        torch.testing.assert_close(mean[b], total, rtol=0, atol=1e-12)


def test_attention_map_with_different_keys_for_each_query():
    rng = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 2, 2, 5, 4, generator=rng, dtype=torch.float64)
    keys = random_mask((2, 5, 5), 2, 0.6) | torch.eye(5, dtype=torch.bool)
    out, mean = ops.attention_map(q, k, v, keys)
    assert torch.equal(mean > 0, keys)
    for r in range(5):
        alone, row = ops.attention_map(q[:, :, r : r + 1], k, v, keys[:, r])
        torch.testing.assert_close(out[:, :, r : r + 1], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(mean[:, r : r + 1], row, rtol=0, atol=1e-12)


def test_attention_map_is_made_in_float32_when_the_model_is_coarser():
    q, k, v = torch.randn(3, 1, 2, 40, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    out, mean = ops.attention_map(q, k, v, None)
    assert out.dtype == torch.bfloat16 and mean.dtype == torch.float32
    assert (mean.sum(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_rollout_is_the_dense_product_with_repeats_counted_once(seed):
    """Ragged rows: each batch row recomputes another count of positions, repeating its first."""
    length, layers, counts = 12, 4, [5, 1, 8]
    rng = torch.Generator().manual_seed(seed)
    index = torch.zeros(3, 8, dtype=torch.int64)
    valid = torch.zeros(3, 8, dtype=torch.bool)
    for b, n in enumerate(counts):
        index[b, :n] = torch.randperm(length, generator=rng)[:n].sort().values
        index[b, n:], valid[b, :n] = index[b, 0], True
    maps = [
        (3 * torch.randn(3, 8, length, generator=rng, dtype=torch.float64)).softmax(-1)
        for _ in range(layers)
    ]
    mass = ops.rollout_mass(maps, index, valid, length)
    eye = torch.eye(length, dtype=torch.float64)
    for b, n in enumerate(counts):
        product = eye
        for weights in maps:
            layer = eye.clone()
            layer[index[b, :n]] = (weights[b, :n] + eye[index[b, :n]]) / 2
            product = layer @ product
        torch.testing.assert_close(mass[b], product.sum(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        mass.sum(1), torch.full((3,), float(length), dtype=torch.float64), rtol=0, atol=1e-12
    )


def choose(logits, temperature, top_p, uniform):
    return ops.choose_tokens(ops.temper(logits, temperature, top_p), uniform)


def test_greedy_choice_is_the_likeliest_token_and_its_probability():
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    token, share = choose(logits, 0.0, 1.0, None)
    whole = logits.exp() / logits.exp().sum(-1, keepdim=True)
    assert torch.equal(token, whole.argmax(-1))
    torch.testing.assert_close(share, whole.max(-1).values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.8, 0.95])
def test_top_p_keeps_the_smallest_set_with_that_mass_and_renormalizes_it(top_p):
    """An even grid of uniforms picks every kept token as often as its new probability."""
    logits = 2 * torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, n = logits.softmax(-1), 4000
    order = sorted(range(8), key=lambda i: -whole[i])
    count = next(c for c in range(1, 9) if sum(whole[i] for i in order[:c]) >= top_p)
    kept = order[:count]
    uniform = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[None]
    token, share = choose(logits.expand(1, n, 8), 1.0, top_p, uniform)
    assert set(token[0].tolist()) <= set(kept)
    mass = sum(whole[i] for i in kept)
    for i in kept:
        assert abs((token == i).double().mean() - whole[i] / mass) < 2 / n
        assert (share[token == i] - whole[i] / mass).abs().max() < 1e-12
    _, greedy = choose(logits[None, None], 0.0, top_p, None)
    assert abs(greedy.item() - whole.max() / mass) < 1e-12


def test_top_p_at_exactly_the_mass_takes_no_more():
    logits = torch.tensor([[[0.5, 0.25, 0.125, 0.125]]], dtype=torch.float64).log()
    _, share = choose(logits, 0.0, 0.5, None)
    assert abs(share.item() - 1.0) < 1e-12
    _, share = choose(logits, 0.0, 0.51, None)
    assert abs(share.item() - 2 / 3) < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_tempered_distribution(temperature):
    rng = torch.Generator().manual_seed(3)
    logits, n = torch.randn(6, generator=rng, dtype=torch.float64), 20000
    uniform = torch.rand(1, n, generator=rng, dtype=torch.float64)
    token, share = choose(logits.expand(1, n, 6), temperature, 1.0, uniform)
    want = (logits / temperature).exp() / (logits / temperature).exp().sum()
    count = torch.bincount(token[0], minlength=6).double()
    chi_square = ((count - n * want) ** 2 / (n * want)).sum()
    assert chi_square < 20.5, "0.1 % level of 5 degrees of freedom"
    torch.testing.assert_close(share[0], want[token[0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_token_of_no_probability_is_never_sampled(uniform):
    logits = torch.tensor([[[-torch.inf, 0.0, -torch.inf, 0.1, -torch.inf]]])
    token, share = choose(logits, 1.0, 1.0, torch.tensor([[uniform]]))
    assert token.item() in (1, 3) and share.item() > 0


def test_choices_are_made_in_float32_when_the_model_is_coarser():
    logits = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, share = choose(logits, 0.0, 1.0, None)
    want = logits.double().softmax(-1).max()
    assert share.dtype == torch.float32 and abs(share.item() / want - 1) < 1e-5


def test_entropy_is_that_of_the_distribution_and_banned_tokens_add_nothing():
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, 9, generator=rng, dtype=torch.float64)
    logits[:, :, 4] = -torch.inf
    share = logits.softmax(-1).numpy()
    kept = share[share > 0].reshape(2, 3, 8)
    np.testing.assert_allclose(ops.entropy(logits), -(kept * np.log(kept)).sum(-1), atol=1e-12)
    one_left = torch.tensor([[[-torch.inf, 3.0, -torch.inf]]])
    assert ops.entropy(one_left).item() == 0
    even = ops.entropy(torch.zeros(1, 1, 7)).item()
    assert abs(even - np.log(7)) < 1e-6


@pytest.mark.parametrize("k", [0, 1, 3, 6])
def test_rows_that_moved_most_have_the_lowest_cosine_over_all_heads(k):
    rng = torch.Generator().manual_seed(k)
    old, new = torch.randn(2, 3, 2, 8, 4, generator=rng, dtype=torch.float64)
    new = old + 0.3 * new
    new[:, :, 2] = old[:, :, 2]  # did not move
    new[:, :, 5] = 3 * old[:, :, 5]  # longer, same direction: cosine 1
    eligible = torch.arange(8) >= torch.tensor([[1], [0], [3]])
    picked = ops.moved_most(new, old, eligible, k)
    for b in range(3):
        a, z = (v[b].transpose(0, 1).reshape(8, 8).numpy() for v in (new, old))
        cosine = (a * z).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(z, axis=1)
        cosine[2] = 2
        order = sorted(np.flatnonzero(eligible[b].numpy()), key=lambda i: cosine[i])
        assert set(picked[b].nonzero().flatten().tolist()) == set(order[:k])


def test_rows_that_did_not_move_tie_to_the_left():
    """In float32 the cosine of equal vectors is not always the same number."""
    same = torch.randn(1, 2, 50, 16, generator=torch.Generator().manual_seed(0))
    picked = ops.moved_most(same, same.clone(), torch.ones(1, 50, dtype=torch.bool), 7)
    assert picked[0].nonzero().flatten().tolist() == list(range(7))


def test_the_row_that_moved_most_is_distinguished_in_bfloat16():
    """The values are exact; the cosine of all but one row rounds to the same number."""
    old = torch.ones(1, 1, 6, 8, dtype=torch.bfloat16)
    new = old.clone()
    new[0, 0, :, 0] = torch.tensor([1.03125, 1.0625, 1.09375, 1.046875, 1.0, 1.015625])
    picked = ops.moved_most(new, old, torch.ones(1, 6, dtype=torch.bool), 2)
    assert picked[0].nonzero().flatten().tolist() == [1, 2]


def test_every_rule_stays_on_the_device_of_its_input():
    """The device "meta" has shapes but no numbers, and cannot be mixed with other devices."""
    mask = torch.ones(2, 9, dtype=torch.bool, device="meta")
    mass, rows = mask.double(), mask[:, :3].long()
    made = [
        ops.certainty_density(mask, 2.0),
        ops.certainty_density(mask, mass[:, :1]),
        ops.certainty_density_as_shipped(mask, 3, 2.0),
        *ops.indices(mask, 3),
        ops.top_k_mask(mass, mask, 2),
        ops.search_window(mask, mask, mask[0].long(), 4, 2),
        ops.nucleus(mass, mask, 0.0),
        ops.nucleus(mass, mask, 0.5),
        ops.nucleus_within(mass, mask, 0.5),
        ops.fill_gaps(mask, 3),
        ops.rollout_mass([mass[:, None].expand(2, 3, 9)] * 2, rows, rows > 0, 9),
        ops.temper(mass[:, None], 0.5, 0.9),
        *ops.choose_tokens(mass[:, None], mass[:, :1]),
    ]
    assert {t.device.type for t in made} == {"meta"}


def test_indices_rise_and_short_rows_repeat_their_first():
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    index, valid = ops.indices(mask, 3)
    assert index[:2].tolist() == [[1, 3, 4], [3, 3, 3]]
    assert valid.tolist() == [[True] * 3, [True, False, False], [False] * 3]


@pytest.mark.parametrize("widths", [(1.0, 7.5, 40.0), (3.0, 3.0, 3.0)])
def test_density_with_a_different_width_in_each_row(widths):
    known = torch.rand(3, 60, generator=torch.Generator().manual_seed(2)) < 0.4
    got = ops.certainty_density(known, torch.tensor(widths)[:, None])
    for b, sigma in enumerate(widths):
        want = ops.certainty_density(known[b : b + 1], sigma)
        torch.testing.assert_close(got[b : b + 1], want, rtol=0, atol=1e-7)


def test_a_temperature_near_zero_takes_the_likeliest():
    logits = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(5))
    token, share = choose(logits, 1e-40, 1.0, torch.tensor([[0.0, 0.3, 0.6, 0.99]]))
    assert torch.equal(token, logits.argmax(-1)) and (share == 1).all()


def test_a_width_near_zero_is_the_position_itself():
    known = torch.tensor([[1, 0, 1, 1, 0]]).bool()
    assert torch.equal(ops.certainty_density(known, 1e-200), known.float())
