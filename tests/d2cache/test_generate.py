"""The loop: batch mates, blocks, ends, the rows that are written, and bad input."""

import sys
from types import SimpleNamespace

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
from transformers import BatchEncoding

import d2cache
from d2cache.canvas import Plan, Why
from d2cache.decoders.confidence import Confidence
from d2cache.edit_runner import EditRunner
from d2cache.generate import open_canvas
from d2cache.policies import CachePolicy
from d2cache.rows import Part
from d2cache.work import Work, gather_rows

LENGTHS = (4, 9, 6)


def ids(pair):
    return pair[0] + "".join(f"-{k}{v}" for k, v in pair[1].items())


MODES = ["greedy", "sampled", "blocks", "stop_at_eos", "stop_in_blocks", "shifted"]
# every policy in every mode under one decoder, every decoder sampled, and every pair of both
PAIRS = (
    [(p, "confidence", m) for p in POLICIES for m in MODES]
    + [(p, d, "sampled") for p in POLICIES if p[0] == "none" for d in DECODERS if d != "confidence"]
    + [(p, d, "stop_in_blocks") for p in POLICIES for d in DECODERS if d != "confidence"]
)


@pytest.mark.parametrize(
    ("policy", "decoder", "mode"), PAIRS, ids=lambda x: ids(x) if isinstance(x, tuple) else x
)
def test_batch_mates_and_padding_change_nothing(policy, decoder, mode):
    """Every step of every row, against the row alone; and the row's trace against its own."""
    knobs = dict(DECODER_KNOBS.get(decoder, {}), sigma=3.0)
    gen, settings, seeds = 10, {}, [5, 6, 7]
    lengths = (4, 7, 5)
    prompts = [random_prompt(n, n) for n in lengths]
    shifted = dict(shift=1, kv_heads=2, qkv_bias=True)  # Dream's shape
    model = small_model(3, **(shifted if mode == "shifted" else {}))
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
            assert torch.equal(mine.why[b, start:], own.why[0])
            assert not mine.why[b, :start].any(), "padding is never recomputed"
        for mine in together[steps:]:
            assert torch.equal(mine.after.tokens[b, start:], alone[-1].after.tokens[0])
        same_trace(trace.row(b), d2cache.Trace.record(iter(alone)))


def same_trace(mine, own):
    for name in ("tokens", "step_of_token", "recomputed", "why", "predicted", "work"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(own, name), err_msg=name)
    for name in ("confidence", "density", "rollout", "candidate_confidence"):
        np.testing.assert_allclose(
            getattr(mine, name), getattr(own, name), atol=1e-6, rtol=0, err_msg=name
        )
    assert mine.run == own.run and mine.header["start"] == own.header["start"]
    assert mine.seconds.shape == own.seconds.shape


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_rows_of_a_batch_that_end_early_do_not_affect_the_others(policy):
    """A threshold writes rows at different speeds: finished rows stay in the batch."""
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
            assert not step.recomputed[b].any(), "a finished row is not computed again"
        for rows in (trace.recomputed, trace.why, trace.predicted):
            assert rows[: len(alone), b].any() and not rows[len(alone) :, b].any()
    assert len(lengths) > 1, "guard: the rows must end at different steps"


def end_of(steps, b=0):
    """Answer of a row, and how many positions come before its first end-of-text token."""
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
        assert torch.equal(a.after.tokens, b.after.tokens), "stopping changes no earlier step"

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
        assert all(low <= w < low + 5 for w in written), "only the current block is written"
        if not (policy[1].get("as_shipped")):
            computed = step.plan.predict[0].nonzero().flatten() - 5
            assert any(low <= c < low + 5 for c in computed.tolist()), "and part of it is computed"
    assert (steps[-1].after.tokens != SMALL.mask_id).all()


FAMILIES = [{}, dict(shift=1, kv_heads=2, qkv_bias=True)]


@pytest.mark.parametrize("changes", FAMILIES, ids=["llada", "dream"])
@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_exactly_the_rows_that_the_step_reports_change(policy, changes):
    model = small_model(11, **changes)
    prompts = [random_prompt(n, n) for n in LENGTHS]
    made = d2cache.make_policy(policy[0], **policy[1])
    # blocks keep a default d2 from computing everything
    steps = d2cache.generate(model, prompts, made, gen_length=12, block_length=6)
    old = None
    for step in steps:
        parts = step.parts
        if parts is None:
            parts = torch.stack([step.rows.parts(i) for i in range(3)], dim=1)
        through = ((parts & Part.MLP) > 0) & step.before.live[:, None, None]
        assert torch.equal(step.recomputed, through.any(1))
        assert torch.equal(step.why > 0, step.recomputed), "every recomputed row has a reason"
        sources = step.plan.predict.roll(-model.config.shift, 1)
        if step.parts is None:
            assert torch.equal(step.recomputed, step.plan.refresh | sources)
            assert torch.equal(step.why[step.plan.refresh], step.plan.why[step.plan.refresh])
            assert (step.why[sources & ~step.plan.refresh] == int(Why.SHIFT)).all()
        unplanned = step.recomputed & ~(step.plan.refresh | sources)
        assert (step.why[unplanned] == int(Why.VERIFY)).all()
        if old is not None:
            for store, part, before in zip(
                (made.kv.k, made.kv.v), (Part.KEY, Part.VALUE), old, strict=True
            ):
                changed = (store != before).any(-1).any(2).transpose(0, 1)  # (B,L,T)
                reported = (parts & part) > 0
                assert not (changed & ~reported).any(), "a change is not reported"
                # what dllm tests and elastic renews may turn out not to have moved at all
                if policy[0] not in ("dllm", "elastic"):
                    assert torch.equal(changed, reported), "a row that it reports was left stale"
        old = made.kv.k.clone(), made.kv.v.clone()


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_planned_rows_are_overwritten_before_anything_reads_them(policy):
    """Poison every row that is about to be recomputed: nothing may change."""
    model = small_model(11, kv_heads=2)
    prompts = [random_prompt(n, n) for n in LENGTHS]
    clean = run(model, prompts, policy, gen_length=12)
    made = d2cache.make_policy(policy[0], **policy[1])
    plan = made.plan
    layers = slice(0, 1 if policy[1].get("first_layer") else None)  # its plan covers that one

    def poisoned(canvas):
        planned = plan(canvas)
        sure = planned.why > 0
        for store in (made.kv.k, made.kv.v):
            store[layers, sure[:, None].expand(-1, 2, -1)] = 1e3
        made.kv.ids[sure] = -1  # layer 0 keeps its K,V while a token stays
        return planned

    made.plan = poisoned
    poisoned_steps = run(model, prompts, made, gen_length=12)
    assert_same_confidence(confidences(poisoned_steps), confidences(clean), 1e-12)


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_layer_0_keeps_the_keys_and_values_of_a_token_that_stays(policy):
    """With the same result as if every row were new in every step, for less work."""
    model, prompt = small_model(11), random_prompt(6)
    kept = run(model, prompt, policy, gen_length=12, block_length=6)
    made = d2cache.make_policy(policy[0], **policy[1])
    plan = made.plan

    def forgetful(canvas):
        if policy[0] == "dllm":
            return plan(canvas)  # its V-verify tests what moved
        made.kv.ids.fill_(-1)
        return plan(canvas)

    made.plan = forgetful
    again = run(model, prompt, made, gen_length=12, block_length=6)
    assert_same_confidence(confidences(kept), confidences(again), 1e-12)
    work = [sum(step.work[0, :2].sum() for step in steps) for steps in (kept, again)]
    assert work[0] < work[1] or policy[0] == "dllm"
    for step in kept[1:]:
        assert int(step.rows.new.sum()) <= 1, "one token was written, one is new"


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_everything_a_run_keeps_is_on_the_device_of_the_model(policy):
    """The device "meta" has shapes but no numbers, and cannot be mixed with other devices."""
    model = small_model(kv_heads=2).to("meta")
    canvas = open_canvas(model, [[1, 2, 3], [4, 5, 6]], 6, 3)
    made = d2cache.make_policy(policy[0], **policy[1])
    made.begin(model, canvas)
    plan = made.plan(canvas)
    kept = [vars(x).values() for x in (canvas, made, made.kv, plan)]
    kept = [x for x in (x for some in kept for x in some) if isinstance(x, torch.Tensor)]
    assert {x.device.type for x in [*kept, *model.rotary(canvas.position)]} == {"meta"}
    assert {x.dtype for x in kept if x.is_floating_point()} <= {model.dtype, torch.float32}


@pytest.mark.parametrize("policy", POLICIES, ids=ids)
def test_a_policy_object_can_be_used_again(policy):
    model, made = small_model(12), d2cache.make_policy(policy[0], **policy[1])
    first = run(model, random_prompt(7, 1), made, gen_length=8)
    run(model, random_prompt(9, 2), made, gen_length=5, block_length=2)
    again = run(model, random_prompt(7, 1), made, gen_length=8)
    assert torch.equal(confidences(first), confidences(again))


class Tired(Confidence):
    """Writes in three steps, then nothing."""

    def accept(self, canvas, candidates):
        return super().accept(canvas, candidates) & (canvas.step < 3)


def test_a_step_that_writes_nothing_is_reported_when_the_next_begins():
    steps = d2cache.generate(small_model(0), [1, 2], "none", Tired(), gen_length=8)
    assert [next(steps).index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="^step 3 wrote nothing: the decoder must accept at"):
        next(steps)


def test_the_loop_yields_a_step_before_it_computes_the_next():
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
        ids = torch.where(torch.rand(3, 16, generator=rng) < 0.5, canvas.tokens, -1)
        rows = gather_rows(canvas, plan, shift, torch.tensor(False), ids)
        for b in range(3):
            source = {j - shift for j in predict[b].nonzero().flatten().tolist()}
            want = source | set(refresh[b].nonzero().flatten().tolist())
            assert rows.index[b][rows.valid[b]].tolist() == sorted(want)
            assert set(rows.index[b].tolist()) == want
            assert set(rows.target[b].tolist()) == {j + shift for j in source}
            at = rows.index[b][rows.head[b]]
            assert (at + shift).tolist() == rows.target[b].tolist()
            assert rows.wanted[b].nonzero().flatten().tolist() == sorted(want)
            new = {j for j in want if ids[b, j] != canvas.tokens[b, j]}
            assert set(rows.new[b].nonzero().flatten().tolist()) == new
            if new:
                assert set(rows.index[b][rows.fresh[b]].tolist()) == new


@pytest.mark.parametrize(
    "prompt",
    [
        [1, 2, 3],
        (1, 2, 3),
        np.array([1, 2, 3]),
        torch.tensor([1, 2, 3]),
        torch.tensor([[1, 2, 3]], dtype=torch.int32),
        [[1, 2, 3]],
        np.array([1, 2, 3], "u1"),
        list(np.array([1, 2, 3])),
        [torch.tensor([1, 2, 3])],
        range(1, 4),
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]},
        BatchEncoding({"input_ids": torch.tensor([[1, 2, 3]])}),
        {"input_ids": [[9, 1, 2, 3]], "attention_mask": [[0, 1, 1, 1]]},
    ],
)
def test_a_prompt_may_be_integers_of_any_kind(prompt):
    canvas = open_canvas(small_model(), prompt, 4)
    assert canvas.tokens.tolist() == [[1, 2, 3, 59, 59, 59, 59]]


def test_prompts_of_different_lengths_are_padded_on_the_left():
    canvas = open_canvas(small_model(), [[1, 2, 3], [4]], 2)
    assert canvas.tokens[0].tolist() == [1, 2, 3, 59, 59]
    assert canvas.tokens[1, 2:].tolist() == [4, 59, 59] and canvas.start.tolist() == [0, 2]
    assert canvas.own[1].tolist() == [False, False, True, True, True]
    assert canvas.masked[1].tolist() == [False, False, False, True, True]
    assert canvas.known[1].tolist() == [False, False, True, False, False]


def test_a_mask_token_in_the_prompt_is_filled_as_well():
    steps = run(small_model(), [1, SMALL.mask_id, 3], "none", gen_length=3)
    last = steps[-1].after.tokens[0].tolist()
    assert [last[0], last[2]] == [1, 3] and SMALL.mask_id not in last and len(steps) == 4


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "the prompt is empty; it needs at least one token"),
        (np.array([]), "the prompt is empty; it needs at least one token"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "attention_mask that does not fit"),
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
)
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
            r"seed is -1; it must be a whole number from 0 to 2\*\*63 - 1, or one per row",
        ),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": None}, "seed is None; it must be a whole number"),
        ({"seed": [1, 2]}, r"seed is \[1, 2\]"),
        ({"seed": ["a"]}, r"seed is \['a'\]"),
        ({"seed": [[1]]}, r"seed is \[\[1\]\]"),
        ({"seed": np.bool_(True)}, "seed is np.True_; it must be a whole number"),
        ({"gen_length": np.float64(8)}, r"gen_length is np.float64\(8.0\); it must be a whole"),
        ({"stop_at_eos": 1}, "stop_at_eos is 1; it must be True or False"),
        ({"stop_at_eos": None}, "stop_at_eos is None; it must be True or False"),
        ({"eager": 0}, "eager is 0; it must be True, False or None"),
        ({"policy": "d3"}, r"unknown policy 'd3'; choose one of .*none"),
        ({"decoder": "best"}, r"unknown decoder 'best'; choose one of .*confidence"),
    ],
)
def test_a_bad_setting_is_refused_at_the_call(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        d2cache.generate(small_model(), [1, 2, 3], **settings)
    assert "\n" not in str(error.value)


def test_something_else_for_a_model_is_refused():
    with pytest.raises(ValueError, match="the model is 'tiny'; pass the model that d2cache.load"):
        d2cache.generate("tiny", [1, 2, 3])


def test_numbers_of_numpy_and_torch_give_a_trace_that_opens(tmp_path):
    settings = dict(
        gen_length=np.int64(6),
        block_length=torch.tensor(4),
        seed=np.array([5]),
        stop_at_eos=np.bool_(True),
        decoder=("confidence", {"temperature": np.float32(0.5), "tokens_per_step": np.int64(2)}),
    )
    plain = dict(gen_length=6, block_length=4, seed=5, stop_at_eos=True)
    plain["decoder"] = ("confidence", {"temperature": 0.5, "tokens_per_step": 2})
    traces = [d2cache.Trace.record(run(small_model(), [1, 2, 3], **s)) for s in (settings, plain)]
    traces[0].save(tmp_path / "run.safetensors")
    opened = d2cache.Trace.load(tmp_path / "run.safetensors")
    assert opened.run == traces[1].run
    assert (opened.tokens == traces[1].tokens).all()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_reported_before_a_step_is(decoder, value):
    model = small_model()
    model.blocks[1].out_proj.weight[0, 0] = value
    for policy in ("none", "d2", "elastic"):
        steps = d2cache.generate(model, [1, 2, 3], policy, decoder, gen_length=6)
        with pytest.raises(ValueError, match="^the logits are not numbers in step 0: .* of small"):
            next(steps)


def test_one_token_whose_embedding_is_not_a_number_is_reported():
    model = small_model()
    model.embed.weight[7] = torch.nan
    with pytest.raises(ValueError, match="the logits are not numbers in step 0"):
        run(model, [1, 7, 3], gen_length=3)


def test_the_next_host_sync_reports_it_where_each_step_must_not_wait():
    """On a GPU, `stuck` carries it to the next step's one read-back."""
    model = small_model()
    policy, decoder = d2cache.make_policy("none"), d2cache.make_decoder("threshold", threshold=0.01)
    canvas = open_canvas(model, [1, 2, 3], 4)
    work = Work(model, policy, decoder, SimpleNamespace(seeds=(0,)), EditRunner(()))
    work.begin(canvas)
    plan = work.plan(canvas)
    rows = work.rows(canvas, plan)
    for broken in (False, True):
        logits = model(canvas.tokens, rows, policy)
        logits[0, 1] = torch.nan if broken else logits[0, 1]
        step = work.write(canvas, plan, rows, logits, None, None)
        assert bool(work.stuck) == broken
    with pytest.raises(RuntimeError, match="step 0 wrote nothing"):
        work.rows(step.after, plan)


class Hungry(torch.nn.Module):
    """A layer that asks for more memory than any machine has."""

    def forward(self, x):
        return torch.empty(1 << 60)


def test_a_run_that_runs_out_of_memory_says_so_in_one_line():
    model = small_model()
    model.blocks[0].down_proj = Hungry()
    with pytest.raises(ValueError, match=r"^out of memory: the run of 1 x 7 positions") as error:
        run(model, [1, 2, 3], gen_length=4)
    assert "\n" not in str(error.value)


def test_a_run_that_cannot_fit_is_refused_at_the_call(monkeypatch):
    module = sys.modules["d2cache.generate"]  # the package's name of it is the function
    needed = 8 * 7 * 2 * 3 * 32 + 8 * 4 * 60  # keys and values of 7 positions, logits of 4
    monkeypatch.setattr(module, "free_memory", lambda device: needed)
    d2cache.generate(small_model(), [1, 2, 3], gen_length=4)
    monkeypatch.setattr(module, "free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match="the run of 1 x 7 positions does not fit: it needs"):
        d2cache.generate(small_model(), [1, 2, 3], gen_length=4)


def test_without_the_graphs_package_a_gpu_runs_the_plain_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "d2cache.graphs", None)  # importing it fails
    monkeypatch.delattr(d2cache, "graphs", raising=False)
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    worker = sys.modules["d2cache.generate"]._worker  # the package's name of it is the function
    assert worker(on_gpu, d2cache.make_policy("none"), eager=False) is Work
