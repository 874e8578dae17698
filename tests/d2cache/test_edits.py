"""Edits by hand: what is requested happens, exactly, and nothing else."""

import json

import numpy as np
import pytest
import torch
from lab import (
    DECODERS,
    POLICIES,
    SMALL,
    Reference,
    assert_same_confidence,
    confidence_of,
    confidences,
    full_pass,
    random_prompt,
    run,
    small_model,
)

import d2cache
from d2cache import Edit, Part, Trace, Why

FAMILIES = [{}, dict(shift=1, kv_heads=2, qkv_bias=True)]
PROMPT, GEN, MASK = random_prompt(9), 12, SMALL.mask_id
LENGTH = len(PROMPT) + GEN
BY_LAYER = ("dllm", "elastic", "sparse")

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p[0] + str(p[1]))
both_families = pytest.mark.parametrize("family", FAMILIES, ids=["llada", "dream"])


def play(policy, *edits, model=None, decoder="confidence", **settings):
    """All steps of one small run in two blocks."""
    settings = dict(gen_length=GEN, block_length=6) | settings
    return run(model or small_model(21), PROMPT, policy, decoder, edits=edits, **settings)


def same(a, b):
    """Two runs, or stretches of runs, that are the same bit for bit."""
    assert len(a) == len(b)
    assert torch.equal(confidences(a), confidences(b))
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.after.tokens, other.after.tokens)
        assert torch.equal(one.why, other.why) and torch.equal(one.logits, other.logits)


def exact(model, step):
    """What a full pass on the canvas before a step makes of it: probabilities (T,), tokens (T,)."""
    logits = full_pass(model, step.before.tokens)[0].roll(model.config.shift, 0)
    token, share = confidence_of(logits, MASK)
    return share, token


def assert_exact(model, step, all_masks=True):
    share, token = exact(model, step)
    seen = step.confidence[0] > -torch.inf
    assert torch.equal(seen, step.before.masked[0]) or not all_masks, "every mask is predicted"
    assert seen.any()
    assert (step.confidence[0, seen] - share[seen]).abs().max() < 1e-9
    assert torch.equal(step.candidates.tokens[0, seen], token[seen])


@every_policy
def test_an_edit_with_nothing_in_it_changes_nothing(policy):
    plain = play(policy)
    same(plain, play(policy, Edit(3), Edit(3), Edit(len(plain) - 1)))
    assert "edits" not in plain[0].run.settings()


@both_families
@every_policy
def test_a_refresh_of_all_makes_the_next_step_exact_and_changes_no_earlier_step(policy, family):
    model = small_model(22, **family)
    plain, edited = (play(policy, *e, model=model) for e in ((), (Edit(4, refresh="all"),)))
    same(plain[:5], edited[:5])
    step = edited[5]
    assert_exact(model, step)
    parts = step.parts if step.parts is not None else step.rows.parts(1)[:, None].repeat(1, 3, 1)
    assert (parts[0, 1:] & int(Part.ALL) == int(Part.ALL)).all(), "each layer makes every part"
    assert (parts & int(Part.MLP | Part.ATTENTION) > 0).all()
    assert not (parts & int(Part.EVICTED)).any(), "and nothing is left out"
    assert (step.why & int(Why.FULL)).all() and step.recomputed.all()
    density = step.before.density(10.0, policy[1].get("as_shipped", False) and policy[0] == "d2")
    assert torch.equal(step.candidates.density, density), "its prior stays what it was"
    off = [(s.confidence[0] - exact(model, s)[0])[s.confidence[0] > -torch.inf] for s in plain[4:9]]
    if policy[0] != "none":
        assert max(d.abs().max() for d in off) > 1e-4, "guard: without it, a step is not exact"


@both_families
@every_policy
def test_requested_rows_are_recomputed_and_written_rows_too(policy, family):
    """At a step whose plan leaves them out; layer-by-layer policies renew everything."""
    model, ask = small_model(22, **family), (0, 3, LENGTH - 1)
    edits = (Edit(4, {1: 7}, refresh=ask), Edit(4, {2: 8}, refresh=(4,)))
    before, step = play(policy, *edits, model=model)[4:6]  # no full pass by any policy's rule
    assert step.before.tokens[0, :5].tolist() == [int(PROMPT[0]), 7, 8, *PROMPT[3:5].tolist()]
    asked = [*ask, 4]
    assert (step.why[0, asked] & int(Why.FULL)).all(), "requested, and reported so"
    assert step.recomputed[0, [*asked, 1, 2]].all()
    if policy[0] in BY_LAYER:
        assert_exact(model, step)
        assert step.recomputed.all()
    elif policy[0] != "none":
        plain = play(policy, Edit(4, {1: 7, 2: 8}), model=model)[5]
        assert not plain.recomputed[0, asked].all(), "guard: they would have been left out"
        more = step.recomputed[0] & ~plain.recomputed[0]
        assert set(more.nonzero().flatten().tolist()) <= set(asked), "and nothing else"
        assert (plain.why[0, [1, 2]] & int(Why.WRITTEN | Why.FULL)).all()
    assert before.changed[0, [1, 2]].all()


@every_policy
def test_keys_and_values_of_a_new_token_are_its_own(policy):
    """At layer 0, where they depend on the token alone, at once; everywhere in a full pass."""
    model, made = small_model(23), d2cache.make_policy(policy[0], **policy[1])
    steps = d2cache.generate(
        model,
        PROMPT,
        made,
        gen_length=GEN,
        block_length=6,
        edits=[Edit(4, {3: 50, 20: 51}), Edit(7, refresh="all")],
    )
    for step in steps:
        if step.index in (5, 8):
            plain, tokens = Reference(model, LENGTH), step.before.tokens[0]
            plain.forward(tokens, torch.arange(LENGTH))
            assert tokens[[3, 20]].tolist() == made.kv.ids[0, [3, 20]].tolist() == [50, 51]
            layers, at = ([0], [3, 20]) if step.index == 5 else ([0, 1, 2], list(range(LENGTH)))
            for mine, own in ((made.kv.k, plain.k), (made.kv.v, plain.v)):
                mine = mine[layers, 0].transpose(1, 2)
                torch.testing.assert_close(mine[:, at], own[layers][:, at], atol=1e-9, rtol=0)
        assert not made.whole, "set for one plan only"
        if step.index == 8:
            return
    raise AssertionError("guard: the run ended early")


@every_policy
@pytest.mark.parametrize("decoder", ["confidence", "wino", "klass"])
def test_a_written_token_stays_and_what_is_masked_again_is_written_again(policy, decoder):
    steps = play(policy, Edit(3, {10: 7, 17: 8}), Edit(6, {10: MASK, 9: MASK}), decoder=decoder)
    canvases = [step.after.tokens[0] for step in steps]
    assert canvases[3][[10, 17]].tolist() == [7, 8]
    assert steps[3].written[0, [10, 17]].all()
    assert canvases[6][[9, 10]].tolist() == [MASK, MASK] and not steps[6].written[0, [9, 10]].any()
    assert (canvases[-1] != MASK).all(), "the run goes on until all is written"
    if decoder == "confidence":
        assert all(tokens[17] == 8 for tokens in canvases[3:])


@every_policy
def test_an_edit_after_the_last_step_makes_the_run_go_on(policy):
    plain = play(policy)
    last = len(plain) - 1
    longer = play(policy, Edit(last, {12: MASK, 13: MASK, 14: MASK}))
    same(plain[:last], longer[:last])
    assert len(longer) > len(plain) and (longer[-1].after.tokens != MASK).all()
    for step in longer[last + 1 :]:
        assert step.accepted[0, 12:15].any() and not step.accepted[0, :12].any()


@every_policy
def test_the_end_token_by_hand_ends_a_run(policy):
    steps = play(policy, Edit(4, {at: SMALL.eos_id for at in range(9, 21)}))
    assert len(steps) == 5
    model = small_model(21)
    full = play(policy, model=model, stop_at_eos=True)
    short = play(policy, Edit(4, {9: SMALL.eos_id}), model=model, stop_at_eos=True)
    assert len(short) == 5 < len(full)


@every_policy
def test_a_run_can_be_made_again_from_the_header_of_its_trace(policy, tmp_path):
    edits = (
        Edit(7, {10: MASK, 2: 5}, policy={}, decoder={"sigma": 0.0, "tokens_per_step": 2}),
        Edit(2, {15: 3, 0: 9}, refresh=(4, 5)),
        Edit(9, refresh="all"),
    )
    steps = play(policy, *edits)
    Trace.record(iter(steps)).save(tmp_path / "run.safetensors")
    trace = Trace.load(tmp_path / "run.safetensors")
    header = trace.run
    assert [e["step"] for e in header["edits"]] == [2, 7, 9], "in the order of their steps"
    again = list(
        d2cache.generate(
            small_model(21),
            trace.tokens[0, : header["prompt_length"]],
            d2cache.make_policy(header["policy"], **header["policy_knobs"]),
            d2cache.make_decoder(header["decoder"], **header["decoder_knobs"]),
            gen_length=header["gen_length"],
            block_length=header["block_length"],
            seed=header["seeds"][0],
            stop_at_eos=header["stop_at_eos"],
            edits=[Edit.of_plain(e) for e in header["edits"]],
        )
    )
    same(steps, again)
    without = play(policy)
    assert not torch.equal(without[-1].after.tokens, steps[-1].after.tokens), "guard"


# knob -> its value before and after, of policies and decoders that act on it at every step
TURNS = [
    ("d2", "current_k", 2, 6),
    ("d2", "rollout_p", 0.0, 0.6),
    ("d2", "inflate_w", 0, 8),
    ("d2", "as_shipped", False, True),
    ("d2", "as_shipped", True, False),
    ("dkv", "reload", 512, 2),
    ("dllm", "kr", 50, 2),
    ("dllm", "rho", 0.1, 0.9),
    ("dllm", "first_layer", False, True),
    ("elastic", "beta", 2, 9),
    ("elastic", "gamma", 0, 2.0),
    ("window", "before", 0, 6),
    ("window", "every", 0, 2),
    ("prefix", "as_shipped", False, True),
    ("dual", "as_shipped", True, False),
]


@pytest.mark.parametrize(("name", "knob", "old", "new"), TURNS)
def test_a_knob_of_the_policy_changes_from_the_next_step_on(name, knob, old, new):
    """Earlier steps are the same; at the change both runs see one canvas and one cache."""
    fixed = {"kp": 50, "kr": 50} if name == "dllm" else {}
    fixed |= {"warmup": 1, "before": 0, "after": 0} if name == "window" else {}
    model = small_model(24, **FAMILIES[1])
    made = d2cache.make_policy(name, **fixed | {knob: old})
    plain = play((name, fixed | {knob: old}), model=model)
    turned = play(made, Edit(3, policy={knob: new}), model=model)
    assert getattr(made, knob) == old, "the object comes back as it was"
    same(plain[:4], turned[:4])
    assert turned[4].run.knobs(3)[0][knob] == old and turned[4].run.knobs(4)[0][knob] == new
    work = [torch.cat([s.work for s in steps[4:]]) for steps in (plain, turned)]
    differ = work[0].shape != work[1].shape or not torch.equal(*work)
    plans = [torch.cat([s.plan.refresh for s in steps[4:6]]) for steps in (plain, turned)]
    assert differ or not torch.equal(*plans)


def test_the_share_of_the_sparse_cache_takes_effect_at_the_next_block():
    """Within a block what was kept stays kept, all of it."""
    for old, new in ((0.8, 0.2), (0.2, 0.8)):
        edit = Edit(2, policy={"keep_ratio": new})
        plain, turned = (play(("sparse", {"keep_ratio": old}), *e) for e in ((), (edit,)))
        assert_same_confidence(confidences(plain[:8]), confidences(turned[:8]), 1e-12)
        out = [[int((s.parts & int(Part.EVICTED) > 0).sum()) for s in r] for r in (plain, turned)]
        assert out[0][:8] == out[1][:8] and out[0][3] > 0
        assert out[0][9] != out[1][9] and (out[1][9] > out[0][9]) == (new < old)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_knob_of_the_decoder_changes_from_the_next_step_on(decoder):
    plain = play("none", decoder=decoder, block_length=GEN)
    made = d2cache.make_decoder(decoder)
    edits = Edit(0, decoder={"tokens_per_step": 3}), Edit(1, decoder={"temperature": 1.5})
    turned = play("none", *edits, decoder=made, block_length=GEN)
    same(plain[:1], turned[:1])
    assert turned[1].accepted.sum() >= 3
    assert_same_confidence(plain[0].confidence, turned[0].confidence, 0)
    assert (made.tokens_per_step, made.temperature) == (1, 0.0), "the object comes back as it was"


def test_a_run_left_early_restores_its_objects():
    made = d2cache.make_policy("d2", current_k=4)
    edits = [Edit(0, policy={"current_k": 5}), Edit(1, policy={"current_k": 6})]
    steps = d2cache.generate(small_model(0), [1, 2], made, gen_length=8, edits=edits)
    seen = [(next(steps).index, made.current_k) for _ in range(3)]
    assert seen == [(0, 5), (1, 6), (2, 6)]
    steps.close()
    assert made.current_k == 4 and not made.running and not made.whole


def test_the_density_is_of_the_width_in_force():
    edit = Edit(3, policy={"sigma": 1.0})
    trace = Trace.record(
        iter(play(("d2", {"sigma": 20.0}), edit, decoder=("confidence", {"sigma": 0.0})))
    )
    plain = Trace.record(
        iter(play(("d2", {"sigma": 20.0}), decoder=("confidence", {"sigma": 0.0})))
    )
    assert np.array_equal(trace.density[:4], plain.density[:4])
    assert not np.allclose(trace.density[4], plain.density[4])


def test_a_trace_records_what_was_written_by_hand():
    p = len(PROMPT)
    policy = ("d2", dict(current_k=2, rollout_p=0.0))
    plain = play(policy, block_length=GEN)
    known = int(plain[2].accepted[0].nonzero()[0])
    masked = play(policy, block_length=GEN)[4].after.masked[0].nonzero().flatten().tolist()
    far = next(j for j in reversed(masked) if torch.isneginf(plain[4].confidence[0, j]))
    edit = Edit(4, {known: 11, far: 12, 2: 13})
    trace = Trace.record(iter(play(policy, edit, block_length=GEN)))
    assert trace.tokens[4, 2] == PROMPT[2] and trace.tokens[5, [known, far, 2]].tolist() == [
        11,
        12,
        13,
    ]
    assert trace.step_of_token[[known - p, far - p]].tolist() == [4, 4]
    assert np.isneginf(trace.confidence[4, far - p])
    assert not trace.candidates[far - p].any() and not trace.candidate_confidence[far - p].any()
    assert not trace.candidates[known - p].any(), "those of the first write are gone"
    again = Trace.record(iter(play(policy, Edit(4, {known: MASK}), block_length=GEN)))
    assert again.step_of_token[known - p] > 4 and again.candidates[known - p].any()
    accepted = int(plain[4].accepted[0].nonzero()[0])
    undone = Trace.record(iter(play(policy, Edit(4, {accepted: MASK}), block_length=GEN)))
    assert undone.tokens[5, accepted] == MASK and undone.step_of_token[accepted - p] > 4


def test_totals_count_the_new_ids_of_an_edit_also_without_a_cache():
    none = Trace.record(iter(play("none", Edit(3, {1: 4, 2: 5, 10: 6}))))
    assert none.totals["flops_vs_none"] == 1.0


TEXTS = {
    "12": Edit(12),
    "3,20=7,4=0": Edit(3, {20: 7, 4: 0}),
    "0,refresh=all": Edit(0, refresh="all"),
    "5,refresh=3.9.12": Edit(5, refresh=(3, 9, 12)),
    "4,policy.current_k=8,policy.rollout_p=0.25,decoder.sigma=0": Edit(
        4, policy={"current_k": 8, "rollout_p": 0.25}, decoder={"sigma": 0}
    ),
    "7,9=1,refresh=2,policy.as_shipped=true,decoder.sigma=-1e-05": Edit(
        7, {9: 1}, (2,), {"as_shipped": True}, {"sigma": -1e-5}
    ),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_json_and_edit_are_equivalent(text):
    edit = TEXTS[text]
    assert str(edit) == text and Edit.parse(text) == edit
    plain = edit.plain()
    assert Edit.of_plain(json.loads(json.dumps(plain))) == edit and plain == edit.plain()


def test_an_edit_does_not_change_with_its_arguments():
    tokens, rows = {3: 4}, [9, 2, 2]
    edit = Edit(1, tokens, rows)
    tokens[5] = 6
    rows.append(1)
    assert edit == Edit(1, {3: 4}, (2, 9))
    with pytest.raises(AttributeError):
        edit.step = 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the step of an edit is ''"),
        ("x", "step of an edit is 'x'"),
        ("-1", "is '-1'"),
        ("1.5", "is '1.5'"),
        ("3,", "has a part ''; its form: STEP"),
        ("3,4", "has a part '4'"),
        ("3,x=4", "has a part 'x=4'"),
        ("3,4=x", "a token is 'x'"),
        ("3,4=-1", "a token is '-1'"),
        ("3,refresh=", "a row is ''"),
        ("3,refresh=1,2", "has a part '2'"),
        ("3,refresh=1.x", "a row is 'x'"),
        ("3,refresh=ALL", "a row is 'ALL'"),
        ("3,model.x=1", "has a part"),
        ("3,policy.x=y", "an edit sets x to 'y'"),
        ("3,policy.x=nan", "an edit sets x to nan"),
        ("3,policy.x=inf", "an edit sets x to inf"),
        ("3,policy.=1", "an edit's knob is ''"),
        ("3,policy.a b=1", "an edit's knob is 'a b'"),
        ("9" * 5000, "step of an edit"),
        ("3,policy.x=" + "9" * 5000, "sets x to"),
        ("٣", "step of an edit"),
    ],
)
def test_a_text_that_is_not_an_edit_is_refused_in_one_line(text, says):
    with pytest.raises(ValueError) as error:
        Edit.parse(text)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(step=-1), "the step of an edit is -1"),
        (dict(step=1.0), "is 1.0"),
        (dict(step=True), "is True"),
        (dict(step=2**31), "a whole number from 0"),
        (dict(tokens=[1]), "tokens is"),
        (dict(tokens={-1: 2}), "a position in an edit's tokens"),
        (dict(tokens={1: 2.5}), "token at position 1 is 2.5"),
        (dict(tokens={"1": 2}), "is '1'"),
        (dict(refresh="some"), "refresh is 'some'"),
        (dict(refresh=3), "refresh is 3"),
        (dict(refresh=[-2]), "refresh is -2"),
        (dict(refresh={1, 2}), "a list of positions"),
        (dict(policy=None), "policy is None"),
        (dict(policy={1: 2}), "knob is 1"),
        (dict(decoder={"x": "1"}), "sets x to '1'"),
        (dict(decoder={"x": 1e13}), "sets x to 1"),
        (dict(decoder={"x": float("nan")}), "sets x to nan"),
    ],
)
def test_what_no_run_can_do_is_refused(given, says):
    with pytest.raises(ValueError) as error:
        Edit(**{"step": 1, **given})
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        "x",
        {},
        {"step": 1, "more": 2},
        {"step": 1, "tokens": [1]},
        {"step": "1"},
        {"step": 1, "tokens": {"x": 1}},
        {"step": 1, "tokens": {"1": "2"}},
        {"step": 1, "refresh": {"a": 1}},
        {"step": 1, "policy": []},
    ],
)
def test_json_that_is_not_an_edit_is_refused(plain):
    with pytest.raises(ValueError) as error:
        Edit.of_plain(plain)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([Edit(1, {LENGTH: 3})], f"position {LENGTH}; this canvas has positions 0 to {LENGTH - 1}"),
        ([Edit(1, refresh=[LENGTH])], f"position {LENGTH}"),
        ([Edit(1, {3: 60})], "token 60; the vocabulary has ids 0 to 59"),
        ([Edit(1, {8: MASK})], "masks position 8 of the prompt; only positions from 9 on"),
        ([Edit(1, policy={"kr": 3})], "policy 'd2' has no knob 'kr'"),
        ([Edit(1, policy={"current_k": 0})], "current_k is 0; it must be a whole number from 1"),
        ([Edit(1, decoder={"sigma": -1})], "decoder 'confidence': sigma is -1"),
        ([Edit(1, decoder={"as_shipped": 1})], "as_shipped is 1; it must be True or False"),
        (Edit(1), "it must be a list of d2cache.Edit"),
        (["1"], "a list of d2cache.Edit"),
        (3, "a list of d2cache.Edit"),
        ([Edit(GEN)], f"after step {GEN}; this run has at most the steps 0 to {GEN - 1}"),
        ([Edit(GEN + 1), Edit(GEN - 1, {9: MASK})], f"after step {GEN + 1}; this run has at most"),
        ([Edit(1)] * 257, "there are 257 edits; 256 are allowed"),
    ],
)
def test_what_does_not_suit_a_run_is_refused_at_the_call(edits, says):
    with pytest.raises(ValueError) as error:
        d2cache.generate(small_model(0), PROMPT, gen_length=GEN, edits=edits)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_edit_after_one_that_masks_again_may_come_later():
    edits = [Edit(GEN - 1, {9: MASK, 10: MASK}), Edit(GEN + 1, {9: 3})]
    steps = run(small_model(0), PROMPT, gen_length=GEN, edits=edits)
    assert len(steps) == GEN + 2 and steps[-1].tokens[0, 9] == 3


def test_an_edit_that_the_run_did_not_reach_is_reported(caplog):
    """How many steps a run makes depends on its decoder, so this is known only at its end."""
    fast = ("confidence", {"tokens_per_step": 4})
    steps = run(small_model(0), PROMPT, "none", fast, gen_length=GEN, edits=[Edit(2), Edit(5)])
    assert len(steps) == 3
    assert caplog.messages == ["the edit after step 5 did not happen: the run ended with step 2"]


def test_numbers_of_numpy_and_torch_are_kept_as_plain_ones():
    edit = Edit(
        np.int64(2),
        {np.int64(9): torch.tensor(3)},
        refresh=np.array([11, 9]),
        policy={"sigma": np.float32(2.5)},
        decoder={"as_shipped": np.bool_(True)},
    )
    assert edit == Edit(2, {9: 3}, (9, 11), {"sigma": 2.5}, {"as_shipped": True})
    assert Edit.of_plain(json.loads(json.dumps(edit.plain()))) == edit


def test_edits_are_for_one_row():
    with pytest.raises(ValueError, match="edits are for one row, this batch has 2"):
        d2cache.generate(small_model(0), [[1, 2], [3, 4]], gen_length=4, edits=[Edit(0)])
