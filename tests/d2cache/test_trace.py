"""Recording changes nothing, a trace replays its run, and a bad file is refused in one line."""

import json
import random
import re
import struct
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab import (
    DECODER_KNOBS,
    DECODERS,
    POLICIES,
    SMALL,
    confidences,
    naive_density,
    random_prompt,
    run,
    small_model,
    with_end,
)
from safetensors.numpy import load_file, save_file

import d2cache
from d2cache import Decoder, Part
from d2cache.trace import ARRAYS, GUESSES, Recorder, Trace
from d2cache.trace_format import LARGEST

D2 = ("d2", dict(current_k=3, rollout_p=0.15, sigma=3.0))
DLLM = ("dllm", dict(kp=4, kr=3))
PROMPT, GEN = random_prompt(6), 10


class Words:
    """The only method of a tokenizer that a trace uses."""

    def decode(self, ids):
        return "".join(f"w{i}." for i in ids)


def recorded(policy=D2, decoder=("confidence", {"sigma": 3.0}), model=None, **settings):
    model = model or small_model(40)
    steps = run(model, PROMPT, policy, decoder, gen_length=GEN, **settings)
    return steps, Trace.record(iter(steps))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p[0] + str(len(p[1])))
def test_watching_changes_nothing(policy):
    """Unobserved, recorded, or with a probe around every layer: the run is the same."""
    model, settings = small_model(41), dict(gen_length=GEN, block_length=5)
    plain = run(model, PROMPT, policy, **settings)
    made, seen = d2cache.make_policy(policy[0], **policy[1]), []
    inner = made.block

    def probe(i, block, x, rows):
        y = inner(i, block, x, rows)
        seen.append((i, float((y - x).norm())))
        return y

    made.block = probe
    probed = run(model, PROMPT, made, **settings)
    recorder = Recorder()
    for step in d2cache.generate(
        model, PROMPT, d2cache.make_policy(policy[0], **policy[1]), **settings
    ):
        recorder.add(step)
        recorder.trace()  # at any time
    trace = recorder.trace()
    assert [i for i, _ in seen] == [0, 1, 2] * len(plain)
    assert torch.equal(confidences(plain), confidences(probed))
    for i, (a, b) in enumerate(zip(plain, probed, strict=True)):
        assert torch.equal(a.after.tokens, b.after.tokens)
        assert a.after.tokens[0].tolist() == trace.tokens[i + 1].tolist()


def check_guesses(steps, trace, row=0):
    """In every step, for every position that it predicted: the top of its logits."""
    p = trace.prompt_length
    for i in range(len(trace.seconds)):
        found, step = trace.guesses(i), steps[i]
        start = step.run.prompt_length - p
        where = (step.rows.target[row] - start).tolist()
        finite = np.flatnonzero(np.isfinite(trace.confidence[i]))
        assert set(found) == {g for g in finite if p + g in where}
        for g, (ids, shares) in found.items():
            best = step.logits[row, where.index(p + g)].float().softmax(-1).topk(5)
            kept = (best.values >= 1 / 256).sum()
            assert ids.tolist() == best.indices[:kept].tolist()
            np.testing.assert_allclose(shares, best.values[:kept], rtol=2e-3)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p[0] + str(len(p[1])))
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_trace_replays_the_live_run(policy, decoder):
    knobs = dict(DECODER_KNOBS.get(decoder, {}), sigma=2.5)
    steps, trace = recorded(policy, (decoder, knobs))
    p, count = len(PROMPT), len(steps)
    assert trace.tokens.dtype == np.int64 and trace.tokens.shape == (count + 1, p + GEN)
    assert trace.tokens[0].tolist() == PROMPT.tolist() + [SMALL.mask_id] * GEN
    for i, step in enumerate(steps):
        assert trace.tokens[i + 1].tolist() == step.after.tokens[0].tolist()
        live = step.candidates.confidence[0, p:].numpy()
        np.testing.assert_array_equal(trace.confidence[i], live.astype(np.float32))
        assert trace.seconds[i] == step.seconds >= 0
        assert trace.predicted[i] == int(step.plan.predict.sum()) + step.shadow
        np.testing.assert_array_equal(trace.why[i], step.why[0].numpy())
        np.testing.assert_array_equal(trace.recomputed[i], step.recomputed[0].numpy())
        np.testing.assert_array_equal(trace.work[i], step.work[0].numpy())
        if step.parts is None:
            assert trace.parts is None
        else:
            np.testing.assert_array_equal(trace.parts[i], step.parts[0].numpy())
        known = (trace.tokens[i] != SMALL.mask_id).tolist()
        if decoder == "adaptive":  # the prior that it used is shown
            used = step.candidates.density[0, p:]
            np.testing.assert_allclose(trace.density[i], used, atol=1e-6, rtol=0)
        elif not policy[1].get("as_shipped"):
            want = naive_density(known, 2.5)[p:]
            np.testing.assert_allclose(trace.density[i], want, atol=1e-6, rtol=0)
        if step.rollout is None:
            assert np.isnan(trace.rollout[i]).all()
        else:
            np.testing.assert_allclose(trace.rollout[i].sum(), p + GEN, rtol=1e-5)
            np.testing.assert_allclose(trace.rollout[i], step.rollout[0].numpy(), rtol=1e-6)
    np.testing.assert_array_equal(trace.recomputed, trace.why != 0)
    check_guesses(steps, trace)
    for j in range(GEN):
        s = int(trace.step_of_token[j])
        assert trace.tokens[s, p + j] == SMALL.mask_id, "masked before the step that wrote it"
        assert (trace.tokens[s + 1 :, p + j] == trace.tokens[-1, p + j]).all()
        assert trace.tokens[-1, p + j] != SMALL.mask_id
        if not policy[1].get("as_shipped"):
            assert trace.candidates[j, 0] == trace.tokens[-1, p + j], (
                "greedy decoding takes the first"
            )
            if Decoder.registry[decoder].certainty is Decoder.certainty:
                assert abs(trace.candidate_confidence[j, 0] - trace.confidence[s, j]) < 1e-6
            logits = steps[s].logits[0, steps[s].rows.target[0].tolist().index(p + j)]
            best = logits.softmax(-1).topk(5)
            assert trace.candidates[j].tolist() == best.indices.tolist()
            np.testing.assert_allclose(trace.candidate_confidence[j], best.values, atol=1e-6)
    assert trace.run["policy"] == policy[0] and trace.run["decoder"] == decoder
    assert policy[1].items() <= trace.run["policy_knobs"].items()


def test_density_is_shown_for_the_width_in_use():
    """The decoder's sigma; without a prior the policy's; else 10."""
    for policy, sigma, want in ((D2, 1.5, 1.5), (D2, 0.0, 3.0), ("none", 0.0, 10.0)):
        _, trace = recorded(policy, ("confidence", {"sigma": sigma}))
        known = (trace.tokens[3] != SMALL.mask_id).tolist()
        np.testing.assert_allclose(trace.density[3], naive_density(known, want)[6:], atol=1e-6)


def test_without_rollout_rows_are_nan_and_a_decoder_may_write_several():
    _, trace = recorded("none", ("confidence", {"tokens_per_step": 3}))
    assert np.isnan(trace.rollout).all() and trace.recomputed.all()
    assert np.bincount(trace.step_of_token).tolist() == [3, 3, 3, 1]


@pytest.mark.parametrize("policy", [D2, "none", DLLM], ids=["d2", "none", "dllm"])
def test_a_saved_trace_loads_as_it_was(tmp_path, policy):
    model = small_model(40)
    model.tokenizer = Words()
    _, trace = recorded(policy, model=model)
    trace.save(tmp_path / "run.safetensors")
    loaded = Trace.load(tmp_path / "run.safetensors")
    for name, (dtype, _) in ARRAYS.items():
        mine, other = getattr(trace, name), getattr(loaded, name)
        if mine is None:
            assert other is None and name == "parts", name
            continue
        assert mine.dtype == other.dtype == dtype, name
        np.testing.assert_array_equal(mine, other, err_msg=name)
    assert loaded.header == json.loads(json.dumps(trace.header))
    assert loaded.totals == trace.totals
    assert loaded.text_of(int(trace.tokens[-1, -1])) == f"w{trace.tokens[-1, -1]}."
    assert loaded.text_of(987) == "<987>"
    assert set(loaded.header["texts"]) >= {str(t) for t in np.unique(trace.tokens)}
    assert Trace.load(str(tmp_path / "run.safetensors")).run == trace.run


def hand_made(tokens, recomputed, predicted, seconds, eos=58):
    """A trace with these canvases and a prompt of 2."""
    _, trace = recorded("none")
    shape = trace.run["shape"] | {"eos_id": eos}
    trace.header["run"] |= {"shape": shape, "prompt_length": 2, "gen_length": 3}
    trace.tokens, trace.recomputed = np.array(tokens), np.array(recomputed, bool)
    trace.predicted, trace.seconds = np.array(predicted), np.array(seconds)
    changed = np.append(5, (trace.tokens[1:-1] != trace.tokens[:-2]).sum(1))
    rows = trace.recomputed.sum(1)
    kv = 2 * rows + changed  # two layers, and the new ids in the first
    trace.work = np.stack([kv, kv, 3 * rows, 3 * rows, 15 * rows], axis=1)
    return trace


def test_totals_of_a_run_counted_by_hand():
    tokens = [[1, 2, 59, 59, 59], [1, 2, 7, 59, 59], [1, 2, 7, 59, 58], [1, 2, 7, 9, 58]]
    recomputed = [[1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 0, 1, 1]]
    totals = hand_made(tokens, recomputed, [3, 1, 1], [0.5, 0.25, 0.25]).totals
    per_row = 3 * (2 * (2 * 32 * 32 + 2 * 32 * 32 + 3 * 32 * 48) + 4 * 5 * 32)
    head = 2 * 32 * 60
    assert totals["steps"] == 3 and totals["seconds"] == 1.0
    assert totals["answer_tokens"] == 2 and totals["tokens_per_second"] == 2.0
    assert abs(totals["hit_rate"] - 5 / 15) < 1e-12
    kept = 2 * 2 * 32 * 32  # k and v of a row at layer 0, where its token is not new
    assert totals["flops"] == 10 * per_row - (10 - 5 - 1 - 1) * kept + 5 * head
    assert totals["flops_none"] == 15 * per_row - (15 - 5 - 1 - 1) * kept + (3 + 2 + 1) * head
    assert totals["flops_vs_none"] == totals["flops"] / totals["flops_none"]


@pytest.mark.parametrize(
    ("last", "answer"),
    [
        ([7, 58, 9], [7]),
        ([58, 7, 9], []),
        ([7, 8, 9], [7, 8, 9]),
        ([7, 8, 58], [7, 8]),
        ([7, 59, 8], [7, 8]),
        ([58, 58, 58], []),
        ([7, 58, 59], [7]),
    ],
)
def test_the_answer_ends_before_its_first_end_of_text(last, answer):
    trace = hand_made([[58, 2, 59, 59, 59], [58, 2, *last]], [[1] * 5], [3], [0.0])
    assert trace.answer.tolist() == answer
    assert trace.totals["answer_tokens"] == len(answer)
    assert trace.totals["tokens_per_second"] == 0.0, "no time, no speed"


def test_no_cache_costs_exactly_what_no_cache_costs():
    _, trace = recorded("none")
    assert trace.totals["flops_vs_none"] == 1.0 and trace.totals["hit_rate"] == 0.0
    _, cached = recorded(D2)
    assert 0.1 < cached.totals["flops_vs_none"] < 0.9 and cached.totals["hit_rate"] > 0.2


def test_a_run_that_stopped_early_leaves_masks_and_minus_one():
    model = with_end(small_model(9), PROMPT, GEN)
    _, trace = recorded("none", "confidence", model, stop_at_eos=True)
    unwritten = trace.tokens[-1, 6:] == SMALL.mask_id
    assert unwritten.any(), "guard"
    np.testing.assert_array_equal(trace.step_of_token == -1, unwritten)
    assert len(trace.answer) == trace.tokens[-1, 6:].tolist().index(model.config.eos_id)
    assert trace.run["stop_at_eos"] is True


def test_a_batch_must_be_split_into_rows_before_totals_or_saving(tmp_path):
    steps = run(small_model(40), [PROMPT, PROMPT[:3]], D2, gen_length=4)
    trace = Trace.record(iter(steps))
    assert trace.batch == 2 and trace.tokens.shape == (5, 2, 10)
    assert trace.step_of_token.shape == (2, 4) and trace.seconds.shape == (4,)
    for use in (lambda: trace.totals, lambda: trace.answer, lambda: trace.save(tmp_path / "x")):
        with pytest.raises(ValueError, match=r"is defined for one row; take trace\.row\(b\)"):
            use()
    one = trace.row(1)
    assert one.batch == 1 and one.tokens.shape == (5, 7) and one.prompt_length == 3
    for b in (0, 1):
        check_guesses(steps, trace.row(b), b)
    one.save(tmp_path / "row.safetensors")
    loaded = Trace.load(tmp_path / "row.safetensors")
    assert loaded.totals == one.totals and loaded.row(0) is loaded


def test_a_layer_by_layer_run_keeps_the_age_of_every_part():
    _, trace = recorded(DLLM)
    assert trace.parts.shape == (10, 3, 16) and trace.recomputed_by_layer.shape == (10, 3, 16)
    for part in (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP):
        ages = trace.age(part)
        for layer, position in ((0, 2), (1, 7), (2, 15), (1, 12)):
            last = None
            for s in range(10):
                last = s if trace.parts[s, layer, position] & part else last
                assert ages[s, layer, position] == s - last
    by_value, by_key = trace.age(Part.VALUE)[:, 1:, 6:], trace.age(Part.KEY)[:, 1:, 6:]
    assert (by_value == 0).all() and by_key.max() > 0, "V is recomputed in every step, K is not"
    assert trace.totals["hit_rate"] == 1 - trace.recomputed_by_layer.mean()
    _, rows = recorded(D2)
    assert rows.parts is None
    assert (rows.recomputed_by_layer == rows.recomputed[:, None]).all()
    assert ((rows.age(Part.KEY) == 0) == rows.recomputed[:, None]).all()


def test_nothing_recorded_is_an_error():
    with pytest.raises(ValueError, match="nothing was recorded"):
        Trace.record(iter([]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path, arrays and header of a valid file."""
    path = tmp_path_factory.mktemp("trace") / "good.safetensors"
    _, trace = recorded()
    trace.save(path)
    return path, load_file(path), trace.header


def test_a_file_of_an_earlier_version_has_no_guesses(saved, tmp_path):
    _, arrays, head = saved
    old = {name: a for name, a in arrays.items() if not name.startswith("guess")}
    save_file(old, tmp_path / "old", metadata={"trace": json.dumps(head)})
    trace = Trace.load(tmp_path / "old")
    assert trace.guess is None and trace.guesses(0) == {}


def change(**arrays):
    return lambda a, h: a.update({n: f(a[n].copy()) for n, f in arrays.items()})


def put(value, at=0):
    def edit(array):
        array.flat[at] = value
        return array

    return edit


def header(*path, value=None, drop=False):
    def edit(arrays, head):
        for key in path[:-1]:
            head = head[key]
        if drop:
            del head[path[-1]]
        else:
            head[path[-1]] = value

    return edit


FAULTS = {
    "schema": (header("schema", value="d2cache-trace/9"), "its schema is 'd2cache-trace/9'"),
    "text too long": (header("texts", value={"1": "x" * 300}), "up to 256 characters"),
    "knob nan": (header("run", "policy_knobs", "sigma", value=float("nan")), "not a finite"),
    "knob nested": (header("run", "decoder_knobs", "sigma", value=[1]), "not a finite"),
    "no stop": (header("run", "stop_at_eos", drop=True), "it lacks 'stop_at_eos'"),
    "a field more": (header("run", "extra", value=1), "has an unknown 'extra'"),
    "weights unknown": (header("run", "weights", value="fp4"), "weights is 'fp4', not 'fp8'"),
    "weights none": (header("run", "weights", value=None), "weights is 'None', not 'fp8'"),
    "edits no list": (header("run", "edits", value={}), "edits are not a list of at most 256"),
    "too many edits": (header("run", "edits", value=[{"step": 1}] * 257), "at most 256"),
    "edit no object": (header("run", "edits", value=[3]), "an edit is 3"),
    "edit unknown": (header("run", "edits", value=[{"step": 1, "x": 2}]), "an edit is"),
    "edit without a step": (header("run", "edits", value=[{}]), "the step of an edit is None"),
    "edit outside": (
        header("run", "edits", value=[{"step": 1, "tokens": {"16": 2}}]),
        "names position 16",
    ),
    "edit of no token": (
        header("run", "edits", value=[{"step": 1, "tokens": {"9": 60}}]),
        "writes token 60",
    ),
    "edit sets a text": (
        header("run", "edits", value=[{"step": 1, "policy": {"x": "y"}}]),
        "sets x to 'y'",
    ),
    "eos float": (header("run", "shape", "eos_id", value=1.5), "eos_id is 1.5"),
    "shift text": (header("run", "shape", "shift", value="x"), "shift is 'x'"),
    "name a list": (header("run", "shape", "name", value=[]), "name is"),
    "block too long": (header("run", "block_length", value=10**6), "block_length is 1000000"),
    "start": (header("start", value=[3]), "start or environment"),
    "written without confidence": (
        lambda a, h: [
            a.update(confidence=np.full_like(a["confidence"], -np.inf)),
            *(a.pop(name) for name in GUESSES),
        ],
        "no confidence for it",
    ),
    "no mask left": (change(tokens=lambda a: a * 0), "a canvas without a mask"),
    "no schema": (header("schema", drop=True), "its schema is 'None'"),
    "no run": (header("run", drop=True), "it lacks 'run'"),
    "no texts": (header("texts", drop=True), "it lacks 'texts'"),
    "run a list": (header("run", value=[1]), ""),
    "no shape": (header("run", "shape", drop=True), "it lacks 'shape'"),
    "shape unknown key": (header("run", "shape", "x", value=1), "unexpected keyword"),
    "shape key missing": (header("run", "shape", "vocab", drop=True), "vocab"),
    "shape text": (header("run", "shape", "vocab", value="60"), ""),
    "shape negative": (header("run", "shape", "layers", value=-1), "layers is -1"),
    "vocab too small": (header("run", "shape", "vocab", value=20), ""),
    "vocab gigantic": (header("run", "shape", "vocab", value=10**400), "vocab is 1000"),
    "prompt length 0": (header("run", "prompt_length", value=0), "prompt_length is 0"),
    "prompt length huge": (header("run", "prompt_length", value=10**9), "the model has room for"),
    "prompt length true": (header("run", "prompt_length", value=True), "prompt_length is 'True'"),
    "gen length float": (header("run", "gen_length", value=10.0), "gen_length is '10.0'"),
    "gen length other": (header("run", "gen_length", value=11), r"has shape"),
    "block length 0": (header("run", "block_length", value=0), "block_length is 0"),
    "knobs a list": (header("run", "policy_knobs", value=[]), "not a short dict"),
    "no knobs": (header("run", "decoder_knobs", drop=True), "it lacks 'decoder_knobs'"),
    "policy a number": (header("run", "policy", value=3), "policy is '3', not a short str"),
    "model too long": (header("run", "model", value="x" * 999), "not a short str"),
    "texts numbers": (header("texts", value={"1": 2}), "its token texts must be strings"),
    "texts a list": (header("texts", value=["a"]), "its token texts must be strings"),
    "no why": (lambda a, h: a.pop("why"), "it lacks 'why'"),
    "no seconds": (lambda a, h: a.pop("seconds"), "it lacks 'seconds'"),
    "no tokens": (lambda a, h: a.pop("tokens"), "it lacks 'tokens'"),
    "step cut off": (
        change(why=lambda x: x[:-1]),
        r"why has shape \(9, 16\); it must have \(10, 16\)",
    ),
    "one canvas short": (change(tokens=lambda x: x[:-1]), r"tokens has shape \(10, 16\)"),
    "flat rollout": (change(rollout=lambda x: x.ravel()), r"rollout has shape \(160,\)"),
    "seconds as a table": (change(seconds=lambda x: x[:, None]), "0 steps"),
    "no steps": (change(seconds=lambda x: x[:0]), "it has 0 steps"),
    "tokens as floats": (change(tokens=lambda x: x.astype("f4")), "tokens has type float32"),
    "confidence whole": (change(confidence=lambda x: np.ones_like(x, "i4")), "has type int32"),
    "token too high": (change(tokens=put(60)), "tokens has values outside 0 to 59"),
    "token negative": (change(tokens=put(-1, 20)), "tokens has values outside 0 to 59"),
    "candidate too high": (change(candidates=put(60)), "candidates has values outside"),
    "step too high": (change(step_of_token=put(10)), "step_of_token has values outside -1 to 9"),
    "step too low": (change(step_of_token=put(-2)), "step_of_token has values outside -1 to 9"),
    "why too high": (change(why=lambda x: put(256)(x.astype("i4"))), "why has values outside"),
    "why negative": (change(why=lambda x: put(-1)(x.astype("i4"))), "why has values outside"),
    "recomputed 2": (change(recomputed=put(2)), "recomputed has values outside 0 to 1"),
    "work negative": (change(work=put(-1)), "work has values outside"),
    "work too high": (change(work=put(10**9)), "work has values outside"),
    "work one short": (change(work=lambda x: x[:, :4]), r"work has shape \(10, 4\)"),
    "parts too few": (
        lambda a, h: a.update(parts=np.zeros((10, 2, 16), "u1")),
        r"parts has shape \(10, 2, 16\)",
    ),
    "parts unknown": (
        lambda a, h: a.update(parts=np.full((10, 3, 16), 32, "u1")),
        "parts has values outside",
    ),
    "density NaN": (change(density=put(np.nan)), "density has values outside"),
    "density 2": (change(density=put(2)), "density has values outside 0 to 1"),
    "seconds NaN": (change(seconds=put(np.nan)), "seconds has values outside"),
    "seconds negative": (change(seconds=put(-1)), "seconds has values outside"),
    "seconds infinite": (change(seconds=put(np.inf)), "seconds has values outside"),
    "predicted high": (change(predicted=put(33)), "predicted has values outside 0 to 32"),
    "guesses without counts": (lambda a, h: a.pop("guess_count"), "without the other arrays"),
    "guess too high": (change(guess=put(60)), "guess has values outside 0 to 59"),
    "guess too many": (change(guess_count=put(200)), "guess_count has values outside 0 to 5"),
    "guess one short": (change(guess=lambda x: x[1:]), "guess_share has shape"),
    "guesses uncounted": (change(guess_count=put(0)), "guess has shape"),
    "guess share NaN": (change(guess_share=put(np.nan)), "guess_share has values outside"),
    "share NaN": (change(candidate_confidence=put(np.nan)), "candidate_confidence has values"),
    "confidence NaN": (change(confidence=put(np.nan)), "confidence has values that are neither"),
    "confidence +inf": (change(confidence=put(np.inf)), "confidence has values that are neither"),
    "confidence 1.5": (change(confidence=put(1.5)), "confidence has values that are neither"),
    "confidence -0.5": (change(confidence=put(-0.5)), "confidence has values that are neither"),
    "rollout negative": (change(rollout=put(-1)), "rollout has values outside 0 to 16"),
    "rollout too heavy": (change(rollout=put(99)), "rollout has values outside 0 to 16"),
    "rollout infinite": (change(rollout=put(np.inf)), "rollout has values outside 0 to 16"),
}


def refused(path, says=""):
    with pytest.raises(ValueError) as error:
        Trace.load(path)
    message = str(error.value)
    assert re.search(says, message)
    assert "\n" not in message and len(message) < 2000
    assert path.name in message
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_file_is_refused(saved, tmp_path, fault):
    edit, says = FAULTS[fault]
    _, arrays, head = saved
    arrays, head = dict(arrays), json.loads(json.dumps(head))
    edit(arrays, head)
    save_file(arrays, tmp_path / "bad.safetensors", metadata={"trace": json.dumps(head)})
    refused(tmp_path / "bad.safetensors", says)


def frame(head: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(head)) + head + body


BROKEN = {
    "empty": b"",
    "text": b"this is a poem, not a trace\n" * 20,
    "json": b'{"tokens": [1, 2, 3]}',
    "zeros": bytes(4096),
    "header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "no metadata": frame(b"{}"),
    "metadata without trace": frame(b'{"__metadata__":{"format":"pt"}}'),
    "trace not json": frame(b'{"__metadata__":{"trace":"{{{"}}'),
    "trace a number": frame(b'{"__metadata__":{"trace":"3"}}'),
    "trace null": frame(b'{"__metadata__":{"trace":"null"}}'),
    "nested": frame(json.dumps({"__metadata__": {"trace": "[" * 100000}}).encode()),
    "array of 2^50 bytes": frame(
        b'{"tokens":{"dtype":"I64","shape":[70368744177664,2],"data_offsets":[0,1125899906842624]}}'
    ),
    "size lies": frame(b'{"tokens":{"dtype":"I64","shape":[4,4],"data_offsets":[0,8]}}', bytes(8)),
    "negative shape": frame(b'{"a":{"dtype":"I64","shape":[-1],"data_offsets":[0,8]}}', bytes(8)),
    "unknown type": frame(b'{"a":{"dtype":"X99","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
    "strange type": frame(b'{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}', bytes(8)),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93.",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_a_trace_is_refused(tmp_path, kind):
    (tmp_path / "bad.safetensors").write_bytes(BROKEN[kind])
    refused(tmp_path / "bad.safetensors", "is not a")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "nothing.safetensors", "there is no trace file nothing.safetensors")
    refused(tmp_path, "is not a trace file")


def long_trace(prompt: int, answer: int) -> Trace:
    """The trace of a run that wrote one token per step from left to right."""
    _, trace = recorded("none")
    length = prompt + answer
    step, at = np.arange(answer)[:, None], np.arange(answer)
    trace.header["run"] |= {"prompt_length": prompt, "gen_length": answer, "block_length": answer}
    trace.header["run"]["shape"] |= {"max_length": length}
    trace.tokens = np.full((answer + 1, length), 7)
    trace.tokens[:-1, prompt:][at >= step] = SMALL.mask_id
    trace.step_of_token = np.arange(answer, dtype=np.int32)
    trace.confidence = np.where(at >= step, 0.5, -np.inf).astype(np.float32)
    trace.density = np.full((answer, answer), 0.5, np.float32)
    trace.rollout = np.full((answer, length), np.nan, np.float32)
    trace.recomputed = np.ones((answer, length), bool)
    trace.why = np.ones((answer, length), np.uint8)
    trace.work = np.repeat(trace.work[:1], answer, 0)
    trace.predicted = np.ones(answer, np.int32)
    trace.seconds = np.ones(answer)
    trace.candidates = np.repeat(trace.candidates[:1], answer, 0)
    trace.candidate_confidence = np.repeat(trace.candidate_confidence[:1], answer, 0)
    trace.guess_count = trace.guess = trace.guess_share = None
    return trace


def test_a_long_run_is_opened_and_may_be_refused_by_its_size(tmp_path):
    path = tmp_path / "long.safetensors"
    trace = long_trace(100, 2000)
    trace.save(path)
    assert path.stat().st_size > LARGEST
    np.testing.assert_array_equal(Trace.load(path).tokens, trace.tokens)
    with pytest.raises(ValueError, match=r"long.safetensors is not .*: it is larger than 64 MiB"):
        Trace.load(path, LARGEST)


def test_a_file_that_does_not_fit_its_run_is_refused_before_it_is_read(saved, tmp_path):
    """Ten gigabytes that no run accounts for: sparse on the disk, never in the memory."""
    _, arrays, head = saved
    size = 10 * 2**30
    layout = {"tokens": {"dtype": "I64", "shape": [size // 8], "data_offsets": [0, size]}}
    layout |= {"seconds": {"dtype": "F64", "shape": [10], "data_offsets": [0, 80]}}
    data = frame(json.dumps(layout | {"__metadata__": {"trace": json.dumps(head)}}).encode())
    with open(tmp_path / "huge.safetensors", "wb") as file:
        file.write(data)
        file.truncate(len(data) + size)
    refused(tmp_path / "huge.safetensors", r"tokens has shape .*; it must have \(11, 16\)")
    save_file(arrays | {"more": np.ones(3)}, tmp_path / "a", metadata={"trace": json.dumps(head)})
    refused(tmp_path / "a", "it has an unknown array 'more'")


def test_the_longest_token_text_is_cut_so_that_the_file_opens(tmp_path):
    model = small_model(40)
    model.tokenizer = Words()
    model.tokenizer.decode = lambda ids: "long" * 100
    _, trace = recorded(model=model)
    trace.save(tmp_path / "run.safetensors")
    assert Trace.load(tmp_path / "run.safetensors").text_of(int(trace.tokens[0, 0])) == "long" * 64


def test_a_truncated_file_is_refused_wherever_it_ends(saved, tmp_path):
    data = saved[0].read_bytes()
    for end in [0, 4, 8, 9, 100, 1000, len(data) // 2, len(data) - 1]:
        (tmp_path / "cut.safetensors").write_bytes(data[:end])
        refused(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(data + b"x")
    refused(tmp_path / "cut.safetensors")


def test_flipped_bytes_load_or_are_refused_and_nothing_else(saved, tmp_path):
    data, rng, begin = saved[0].read_bytes(), random.Random(0), time.perf_counter()
    head = 8 + int.from_bytes(data[:8], "little")
    path, outcomes = tmp_path / "flipped.safetensors", {True: 0, False: 0}
    for trial in range(300):
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            flipped[rng.randrange(head if trial % 2 else len(data))] = rng.randrange(256)
        path.write_bytes(flipped)
        try:
            trace = Trace.load(path)
            outcomes[True] += 1
        except ValueError as error:
            assert "\n" not in str(error)
            outcomes[False] += 1
        else:
            assert trace.tokens.shape == (11, 16) and trace.totals["steps"] == 10
    assert min(outcomes.values()) > 20, "guard: some load, some are refused"
    assert time.perf_counter() - begin < 20


def test_a_model_config_of_a_trace_is_a_model_config(saved):
    assert Trace.load(saved[0]).run["shape"] == replace(SMALL).__dict__
