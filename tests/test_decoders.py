"""Decoding rules on fixed canvases, each restated in a few lines of numpy."""

import numpy as np
import pytest
import torch
from lab import DECODERS, SMALL, random_prompt, run, small_model

import d2cache
from d2cache.canvas import Candidates, Canvas

MASK = SMALL.mask_id


def scene(seed: int = 0, batch: int = 3, prompt: int = 3, answer: int = 14, block: int = 7):
    """A canvas with some positions written, and random candidates at the masked ones."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 50, (batch, prompt + answer), generator=rng)
    masked = torch.rand(batch, answer, generator=rng) < 0.6
    masked[:, 1] = True
    tokens[:, prompt:][masked] = MASK
    canvas = Canvas(tokens, torch.zeros(batch), prompt, block, MASK, SMALL.eos_id)
    confidence = torch.rand(batch, prompt + answer, generator=rng, dtype=torch.float64)
    confidence[torch.rand(confidence.shape, generator=rng) < 0.2] = -torch.inf  # not computed
    confidence[:, prompt + 1] = 0.01 * (1 + torch.arange(batch))
    confidence[tokens != MASK] = -torch.inf
    density = torch.rand(confidence.shape, generator=rng)
    return canvas, Candidates(tokens, confidence, density)


def open_positions(canvas, candidates, b: int) -> list[int]:
    """Answer positions of row b that are masked, computed, and in the block of the first mask."""
    p, size = canvas.prompt_length, canvas.block_length
    tokens = canvas.tokens[b].tolist()
    masked = [j for j in range(p, len(tokens)) if tokens[j] == MASK]
    block = (masked[0] - p) // size
    return [
        j for j in masked
        if (j - p) // size == block and candidates.confidence[b, j] > -torch.inf
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("prior", [False, True])
def test_confidence_writes_the_best_of_the_open_block(seed, count, prior):
    canvas, candidates = scene(seed)
    if not prior:
        candidates = Candidates(candidates.tokens, candidates.confidence, None)
    accepted = d2cache.make_decoder("confidence", tokens_per_step=count).accept(canvas, candidates)
    for b in range(3):
        score = candidates.confidence[b].numpy().copy()
        if prior:
            score = score * candidates.density[b].numpy()
        order = sorted(open_positions(canvas, candidates, b), key=lambda j: (-score[j], j))
        assert accepted[b].nonzero().flatten().tolist() == sorted(order[:count])


def test_equal_confidences_are_written_from_the_left():
    canvas, candidates = scene(1)
    flat = torch.where(candidates.confidence > -torch.inf, 1.0, -torch.inf)
    for name in ("confidence", "threshold"):
        decoder = d2cache.make_decoder(name, tokens_per_step=2)
        accepted = decoder.accept(canvas, Candidates(candidates.tokens, flat, None))
        for b in range(3):
            got = accepted[b].nonzero().flatten().tolist()
            assert got[:2] == open_positions(canvas, candidates, b)[:2]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 3])
def test_threshold_compares_the_raw_confidence(seed, threshold, count):
    """The prior only ranks what is written when too few are sure."""
    canvas, candidates = scene(seed)
    decoder = d2cache.make_decoder("threshold", threshold=threshold, tokens_per_step=count)
    accepted = decoder.accept(canvas, candidates)
    for b in range(3):
        raw = candidates.confidence[b].numpy()
        product = raw * candidates.density[b].numpy()
        allowed = open_positions(canvas, candidates, b)
        sure = {j for j in allowed if raw[j] >= threshold}
        if len(sure) < count:
            rank = sorted(allowed, key=lambda j: (j not in sure, -product[j], j))
            sure = set(rank[:count])  # those above the threshold, then the best of the rest
        assert set(accepted[b].nonzero().flatten().tolist()) == sure


def test_a_confidence_of_exactly_the_threshold_is_sure():
    canvas, candidates = scene(2)
    exact = torch.where(candidates.confidence > -torch.inf, 0.5, -torch.inf)
    decoder = d2cache.make_decoder("threshold", threshold=0.5)
    accepted = decoder.accept(canvas, Candidates(candidates.tokens, exact, None))
    for b in range(3):
        got = accepted[b].nonzero().flatten().tolist()
        assert got == open_positions(canvas, candidates, b) and len(got) > 1


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("seed", range(4))
def test_every_decoder_writes_something_and_only_what_is_open_and_computed(name, seed):
    canvas, candidates = scene(seed)
    decoder = d2cache.make_decoder(name)
    tokens, confidence = canvas.tokens.clone(), candidates.confidence.clone()
    accepted = decoder.accept(canvas, candidates)
    assert torch.equal(tokens, canvas.tokens), "a rule edits nothing"
    assert torch.equal(confidence, candidates.confidence), "a rule edits nothing"
    for b in range(3):
        written = set(accepted[b].nonzero().flatten().tolist())
        assert written and written <= set(open_positions(canvas, candidates, b))


@pytest.mark.parametrize("name", DECODERS)
def test_a_row_that_has_ended_is_left_alone(name):
    canvas, candidates = scene(3)
    tokens = canvas.tokens.clone()
    tokens[0, 3], tokens[1:, 3:5] = SMALL.eos_id, MASK
    candidates.confidence[1:, 4] = 0.4
    ended = Canvas(tokens, canvas.start, 3, 7, MASK, SMALL.eos_id, stop_at_eos=True)
    accepted = d2cache.make_decoder(name).accept(ended, candidates)
    assert not accepted[0].any() and accepted[1].any() and accepted[2].any()


def test_an_unknown_density_of_zero_does_not_let_an_uncomputed_position_win():
    """-inf times 0 is not a number, and -inf times a negative density would be +inf."""
    canvas, candidates = scene(4)
    zero = Candidates(
        candidates.tokens, candidates.confidence, torch.zeros_like(candidates.density)
    )
    for name in DECODERS:
        accepted = d2cache.make_decoder(name).accept(canvas, zero)
        for b in range(3):
            written = set(accepted[b].nonzero().flatten().tolist())
            assert written and written <= set(open_positions(canvas, candidates, b))


@pytest.mark.parametrize("policy", ["none", "d2"])
def test_the_prior_moves_the_order_of_writing(policy):
    model, prompt = small_model(5), random_prompt(6)
    orders = []
    for sigma in (0.0, 2.0):
        steps = run(model, prompt, policy, ("confidence", {"sigma": sigma}), gen_length=16)
        orders.append([int(s.accepted.nonzero()[0, 1]) for s in steps])
        for step in steps:
            assert (step.candidates.density is None) == (sigma == 0)
    assert orders[0] != orders[1]
    jumps = [np.abs(np.diff(o)).mean() for o in orders]
    assert jumps[1] < jumps[0], "the prior writes close to what is known"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_tokens_per_step_sets_the_number_of_steps(count):
    steps = run(
        small_model(5), random_prompt(6), "none", ("confidence", {"tokens_per_step": count}),
        gen_length=12, block_length=6,
    )  # fmt: skip
    assert len(steps) == 2 * -(-6 // count)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    model, prompt = small_model(6), random_prompt(6)
    warm = ("confidence", {"temperature": 1.0})
    answers = [
        run(model, prompt, "none", warm, gen_length=16, seed=seed)[-1].after.tokens.tolist()
        for seed in (3, 3, 4)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_a_run_samples_each_position_from_the_models_distribution():
    """First candidates over many seeds against the logits of the first step."""
    model, prompt, n = small_model(6), random_prompt(5), 1500
    first = next(
        d2cache.generate(
            model, prompt.expand(n, -1), "none",
            d2cache.make_decoder("confidence", temperature=1.0), gen_length=3, seed=range(n),
        )
    )  # fmt: skip
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


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_mask_token_is_never_proposed(name, temperature):
    model = small_model(7)
    model.head.weight.data[SMALL.mask_id] = 30 * model.head.weight.data[3]
    decoder = (name, {"temperature": temperature})
    for step in run(model, random_prompt(6), "none", decoder, gen_length=9):
        masked = step.before.masked
        assert (step.candidates.tokens[masked] != SMALL.mask_id).all()
        assert torch.isneginf(step.logits[..., SMALL.mask_id]).all()
        assert (step.after.tokens[step.accepted] != SMALL.mask_id).all()


def test_a_decoder_that_accepts_nothing_is_named_in_an_error(monkeypatch):
    decoder = d2cache.make_decoder("confidence")
    monkeypatch.setattr(decoder, "accept", lambda canvas, candidates: canvas.masked & False)
    with pytest.raises(RuntimeError, match=r"^step 0 wrote nothing: the decoder must accept"):
        run(small_model(0), random_prompt(4), "none", decoder, gen_length=4)


def test_a_batch_is_stuck_as_soon_as_one_row_is(monkeypatch):
    decoder = d2cache.make_decoder("confidence")
    accept = decoder.accept

    def only_row_one(canvas, candidates):
        accepted = accept(canvas, candidates)
        accepted[0] = False
        return accepted

    monkeypatch.setattr(decoder, "accept", only_row_one)
    with pytest.raises(RuntimeError, match="step 0 wrote nothing"):
        run(small_model(0), random_prompt(4).expand(2, -1), "none", decoder, gen_length=4)
