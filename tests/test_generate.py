"""The loop: batch mates, blocks, ends, the rows that are written, and bad input."""

import numpy as np
import pytest
import torch
from lab import (
    DECODER_KNOBS,
    DECODERS,
    POLICIES,
    SMALL,
    assert_same_confidence,
    confidences,
    random_prompt,
    run,
    small_model,
    with_end,
)

import d2cache
from d2cache.canvas import Plan
from d2cache.generate import gather_rows, open_canvas
from d2cache.policies import CachePolicy

LENGTHS = (4, 9, 6)


def ids(pair):
    return pair[0] + "".join(f"-{k}{v}" for k, v in pair[1].items())


MODES = ["greedy", "sampled", "blocks", "stop_at_eos", "stop_in_blocks", "grouped"]
# every policy in every mode under one decoder, and every decoder in two modes over two policies
PAIRS = [(p, "confidence", m) for p in POLICIES for m in MODES] + [
    (p, d, m) for p in POLICIES if p[0] in ("none", "d2") and "inflate_w" not in p[1]
    for d in DECODERS if d != "confidence" for m in ("sampled", "stop_in_blocks")
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "decoder", "mode"), PAIRS, ids=lambda x: ids(x) if isinstance(x, tuple) else x
)
def test_batch_mates_and_padding_change_nothing(policy, decoder, mode):
    """Every step of every row, against the row alone; and the row's trace against its own."""
    knobs = dict(DECODER_KNOBS.get(decoder, {}), sigma=3.0)
    gen, settings, seeds = 10, {}, [5, 6, 7]
    lengths = (4, 7, 5)
    prompts = [random_prompt(n, n) for n in lengths]
    model = small_model(3, kv_heads=2 if mode == "grouped" else 4)
    if mode == "sampled":
        knobs |= dict(temperature=0.9, top_p=0.9)
    if mode in ("blocks", "stop_in_blocks"):
        settings["block_length"] = 4
    if mode.startswith("stop"):
        settings["stop_at_eos"] = True
        model = with_end(model, prompts[1], gen)
    together = run(model, prompts, policy, (decoder, knobs), gen_length=gen, seed=seeds, **settings)
    trace = d2cache.Trace.record(iter(together))
    for b, prompt in enumerate(prompts):
        alone = run(
            model, prompt, policy, (decoder, knobs), gen_length=gen, seed=seeds[b], **settings
        )
        start, steps = max(lengths) - len(prompt), len(alone)
        assert len(together) >= steps
        assert_same_confidence(
            confidences(together[:steps])[:, b, start:], confidences(alone)[:, 0], 1e-9
        )
        for mine, own in zip(together, alone, strict=False):
            assert torch.equal(mine.accepted[b, start:], own.accepted[0])
            assert torch.equal(mine.after.tokens[b, start:], own.after.tokens[0])
            assert torch.equal(mine.plan.why[b, start:], own.plan.why[0])
            assert not mine.plan.why[b, :start].any(), "padding is never recomputed"
        for mine in together[steps:]:
            assert torch.equal(mine.after.tokens[b, start:], alone[-1].after.tokens[0])
        same_trace(trace.row(b), d2cache.Trace.record(iter(alone)))


def same_trace(mine, own):
    for name in ("tokens", "step_of_token", "recomputed", "why", "predicted"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(own, name), err_msg=name)
    for name in ("confidence", "density", "rollout", "candidate_confidence"):
        np.testing.assert_allclose(
            getattr(mine, name), getattr(own, name), atol=1e-6, rtol=0, err_msg=name
        )
    assert mine.run == own.run and mine.header["start"] == own.header["start"]
    assert mine.seconds.shape == own.seconds.shape


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_rows_of_a_batch_that_end_early_do_not_disturb_the_others(policy):
    """A threshold writes rows at different speeds: done rows stay in the batch."""
    model, prompts = small_model(8), [random_prompt(5, s) for s in range(4)]
    decoder = ("threshold", {"threshold": 0.3, "sigma": 3.0})
    together = run(model, prompts, policy, decoder, gen_length=10)
    trace = d2cache.Trace.record(iter(together))
    lengths = set()
    for b, prompt in enumerate(prompts):
        alone = run(model, prompt, policy, decoder, gen_length=10)
        lengths.add(len(alone))
        assert torch.equal(together[-1].after.tokens[b], alone[-1].after.tokens[0])
        for step in together[len(alone) :]:
            assert not step.rows.valid[b].any(), "a row that has ended is computed no more"
        for rows in (trace.recomputed, trace.why, trace.predicted):
            assert rows[: len(alone), b].any() and not rows[len(alone) :, b].any()
    assert len(lengths) > 1, "guard: the rows must end at different steps"


def end_of(steps, b=0):
    """Answer of a row, and how many positions stand before its first end-of-text token."""
    answer = steps[-1].after.tokens[b, steps[-1].after.prompt_length :].tolist()
    ends = [i for i, token in enumerate(answer) if token == steps[-1].after.eos_id]
    return answer, ends[0] if ends else None


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_run_stops_when_all_before_its_first_end_is_written_and_not_later(policy, block_length):
    prompt, settings = random_prompt(6), {"gen_length": 12, "block_length": block_length}
    model = with_end(small_model(9), prompt, 12, block_length=block_length)
    full = run(model, prompt, policy, **settings)
    short = run(model, prompt, policy, stop_at_eos=True, **settings)
    for a, b in zip(full, short, strict=False):
        assert torch.equal(a.after.tokens, b.after.tokens), "stopping changes no step before"

    def finished(step):
        answer = step.after.tokens[0, 6:].tolist()
        eos = model.config.eos_id
        return eos in answer and SMALL.mask_id not in answer[: answer.index(eos)]

    done = [finished(step) for step in full]
    expected = done.index(True) + 1 if any(done) else len(full)
    assert len(short) == expected
    if policy[0] == "none":
        assert expected < len(full), "guard: the run must have something to leave out"


def test_an_end_of_text_token_in_the_prompt_ends_nothing():
    model = small_model(9)
    prompt = [3, model.config.eos_id, 4]
    plain = run(model, prompt, "none", gen_length=6)
    assert model.config.eos_id not in plain[-1].after.tokens[0, 3:], "guard"
    assert len(run(model, prompt, "none", gen_length=6, stop_at_eos=True)) == 6


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
@pytest.mark.parametrize("decoder", DECODERS)
def test_blocks_are_written_one_after_the_other(policy, decoder):
    model, prompt = small_model(10), random_prompt(5)
    steps = run(
        model, prompt, policy, (decoder, {"tokens_per_step": 2}), gen_length=13, block_length=5
    )
    for step in steps:
        masked = (step.before.tokens[0, 5:] == SMALL.mask_id).nonzero().flatten().tolist()
        low = masked[0] // 5 * 5
        written = (step.accepted[0].nonzero().flatten() - 5).tolist()
        assert written and set(written) <= set(masked)
        assert all(low <= w < low + 5 for w in written), "only the open block is written"
        if not (policy[1].get("as_shipped")):
            computed = step.plan.predict[0].nonzero().flatten() - 5
            assert any(low <= c < low + 5 for c in computed.tolist()), "and part of it is computed"
    assert (steps[-1].after.tokens != SMALL.mask_id).all()


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_exactly_the_planned_rows_of_keys_and_values_change(policy):
    model = small_model(11)
    prompts = [random_prompt(n, n) for n in LENGTHS]
    made = d2cache.make_policy(policy[0], **policy[1])
    # blocks keep a default d2 from computing everything
    steps = d2cache.generate(model, prompts, made, gen_length=12, block_length=6)
    old_k = old_v = None
    for step in steps:
        planned = torch.zeros_like(step.accepted)
        for b in range(len(prompts)):
            planned[b, step.rows.index[b][step.rows.valid[b]]] = True
        assert torch.equal(planned, step.plan.why > 0)
        assert torch.equal(planned, step.plan.refresh | step.plan.predict)
        if old_k is not None:
            for new, old in ((made.kv.k, old_k), (made.kv.v, old_v)):
                changed = (new != old).any(-1).any(2)  # (L,B,T)
                assert not changed[:, ~planned].any(), "a row outside the plan was written"
                for layer in changed[1:]:
                    assert torch.equal(layer, planned), "a planned row was left stale"
        old_k, old_v = made.kv.k.clone(), made.kv.v.clone()


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_planned_rows_are_overwritten_before_anything_reads_them(policy, monkeypatch):
    """Poison every row that is about to be recomputed: nothing may change."""
    model = small_model(11, kv_heads=2)
    prompts = [random_prompt(n, n) for n in LENGTHS]
    clean = run(model, prompts, policy, gen_length=12)
    made = d2cache.make_policy(policy[0], **policy[1])
    plan = made.plan

    def poisoned(canvas):
        planned = plan(canvas)
        for store in (made.kv.k, made.kv.v):
            store[:, planned.refresh[:, None].expand(-1, 2, -1)] = 1e3
        return planned

    monkeypatch.setattr(made, "plan", poisoned)
    poisoned_steps = run(model, prompts, made, gen_length=12)
    assert_same_confidence(confidences(poisoned_steps), confidences(clean), 0.0)


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_a_policy_object_can_be_used_again(policy):
    model, made = small_model(12), d2cache.make_policy(policy[0], **policy[1])
    first = run(model, random_prompt(7, 1), made, gen_length=8)
    run(model, random_prompt(9, 2), made, gen_length=5, block_length=2)
    again = run(model, random_prompt(7, 1), made, gen_length=8)
    assert torch.equal(confidences(first), confidences(again))


def test_the_loop_hands_out_a_step_before_it_makes_the_next():
    model, made = small_model(0), d2cache.make_policy("none")
    calls = []
    made.plan = lambda canvas: calls.append(canvas.step) or CachePolicy.plan(made, canvas)
    steps = d2cache.generate(model, random_prompt(4), made, gen_length=5)
    assert calls == []
    assert [next(steps).index, next(steps).index] == [0, 1] and calls == [0, 1]
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.parametrize("shift", [0, 1])
def test_rows_are_the_refreshed_and_the_sources_of_predictions(shift):
    """rows = refresh | shift(predict); `head` finds each prediction among them."""
    rng = torch.Generator().manual_seed(shift)
    for _ in range(20):
        canvas = open_canvas(small_model(), torch.ones(3, 6, dtype=torch.int64), 10)
        predict = canvas.masked & (torch.rand(3, 16, generator=rng) < 0.3)
        predict[:, 8] = True
        refresh = torch.rand(3, 16, generator=rng) < 0.3
        plan = Plan(predict, refresh, predict.byte())
        rows = gather_rows(canvas, plan, shift, torch.tensor(False))
        for b in range(3):
            source = {j - shift for j in predict[b].nonzero().flatten().tolist()}
            want = source | set(refresh[b].nonzero().flatten().tolist())
            assert rows.index[b][rows.valid[b]].tolist() == sorted(want)
            assert set(rows.index[b].tolist()) == want
            assert set(rows.target[b].tolist()) == {j + shift for j in source}
            at = rows.index[b][rows.head[b]]
            assert (at + shift).tolist() == rows.target[b].tolist()


@pytest.mark.parametrize(
    "prompt", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), torch.tensor([1, 2, 3]),
               torch.tensor([[1, 2, 3]], dtype=torch.int32), [[1, 2, 3]], np.array([1, 2, 3], "u1"),
               list(np.array([1, 2, 3])), [torch.tensor([1, 2, 3])]],
)  # fmt: skip
def test_a_prompt_may_come_as_any_whole_numbers(prompt):
    canvas = open_canvas(small_model(), prompt, 4)
    assert canvas.tokens.tolist() == [[1, 2, 3, 59, 59, 59, 59]]


def test_prompts_of_different_lengths_are_padded_on_the_left():
    canvas = open_canvas(small_model(), [[1, 2, 3], [4]], 2)
    assert canvas.tokens[0].tolist() == [1, 2, 3, 59, 59]
    assert canvas.tokens[1, 2:].tolist() == [4, 59, 59] and canvas.start.tolist() == [0, 2]
    assert canvas.own[1].tolist() == [False, False, True, True, True]
    assert canvas.masked[1].tolist() == [False, False, False, True, True]
    assert canvas.known[1].tolist() == [False, False, True, False, False]


def test_a_mask_token_in_the_prompt_is_a_token_of_the_prompt():
    steps = run(small_model(), [1, SMALL.mask_id, 3], "none", gen_length=3)
    assert steps[-1].after.tokens[0, :3].tolist() == [1, SMALL.mask_id, 3] and len(steps) == 3


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], r"empty|integer token ids"),
        (torch.zeros(0, dtype=torch.int64), "the prompt is empty; it needs at least one token"),
        ([[1, 2], []], "prompt"),
        (torch.zeros(0, 4, dtype=torch.int64), "the prompt is empty; it needs at least one"),
        ([1.0, 2.0], r"has shape \(2,\) and type torch.float32; it must be integer"),
        (torch.tensor([1.5]), "must be integer token ids"),
        ([True, False], "type torch.bool; it must be integer"),
        (torch.tensor([1j]), "must be integer token ids"),
        (torch.ones(2, 2, 2, dtype=torch.int64), r"must be integer token ids \(P,\) or \(B,P\)"),
        ([[[1, 2]]], r"must be integer token ids \(P,\) or \(B,P\)"),
        (torch.tensor(3), "must be integer token ids"),
        (7, r"prompt_ids is int; it must be token ids"),
        (None, r"prompt_ids is NoneType; it must be token ids"),
        ("hello", r"prompt_ids is str; it must be token ids"),
        ({"a": 1}, r"prompt_ids is dict; it must be token ids"),
        ([2**70], r"prompt_ids is list; it must be token ids"),
        ([1, 60], "has values from 1 to 60; the vocabulary has ids 0 to 59"),
        ([-1, 5], "has values from -1 to 5; the vocabulary has ids 0 to 59"),
        ([[1, 2], [3, 99]], "has values from 3 to 99"),
        (list(range(50)) * 5, "250 tokens .* 16 is 266; small has room for 256: shorten"),
    ],
)  # fmt: skip
def test_a_bad_prompt_is_refused_at_the_call(prompt, says):
    with pytest.raises(ValueError, match=says) as error:
        d2cache.generate(small_model(), prompt, gen_length=16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gen_length": 0}, "gen_length is 0; it must be a whole number of at least 1"),
        ({"gen_length": -2}, "gen_length is -2"),
        ({"gen_length": True}, "gen_length is True"),
        ({"gen_length": 1.5}, "gen_length is 1.5"),
        ({"gen_length": "8"}, "gen_length is '8'"),
        ({"gen_length": 8, "block_length": 0}, "block_length is 0"),
        ({"gen_length": 8, "block_length": 2.0}, "block_length is 2.0"),
        ({"gen_length": 8, "block_length": False}, "block_length is False"),
        ({"gen_length": 254}, "prompt of 3 tokens .* answer of 254 is 257; small has room for 256"),
        (
            {"seed": -1},
            r"seed is -1; it must be a whole number from 0 to 2\*\*63 - 1, or one a row",
        ),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": None}, "seed is None; it must be a whole number"),
        ({"seed": [1, 2]}, r"seed is \[1, 2\]"),
        ({"seed": ["a"]}, r"seed is \['a'\]"),
        ({"policy": "d3"}, r"unknown policy 'd3'; choose one of .*none"),
        ({"decoder": "best"}, r"unknown decoder 'best'; choose one of .*confidence"),
    ],
)
def test_a_bad_setting_is_refused_at_the_call(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        d2cache.generate(small_model(), [1, 2, 3], **settings)
    assert "\n" not in str(error.value)
