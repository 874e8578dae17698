"""Traces into tables, figures and stage events: what they say must be what the run did."""

import base64
import json
import re
import shutil

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from lab import DECODER_KNOBS, DECODERS, POLICIES, random_prompt, small_model
from safetensors.torch import load_file, save_file

import d2cache
from analysis import bench, figures, metrics, probes, study
from analysis.page.events import (
    FINEST,
    LARGEST_MAP,
    LEAST_SHARE,
    LiveEvents,
    ended,
    ending,
    map_payload,
    message,
    trace_events,
)
from analysis.page.planes import run_lengths
from d2cache import bundled, progress
from d2cache.model import Linear
from d2cache.trace import Recorder


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


def run_both_ways(model, ids, policy, decoder="confidence", **settings):
    """The events of a run while it is made, and its trace."""
    recorder, events, out = Recorder(), None, []
    for step in d2cache.generate(model, ids, policy, decoder, **settings):
        recorder.add(step)
        if events is None:
            events = LiveEvents("key", step)
            out.append(events.start())
        out += events.step(step)
    trace = recorder.trace()
    return [*out, ended("key", *ending(trace))], trace


@pytest.fixture(scope="module")
def live(model):
    ids = model.encode("Tom has 5 apples. He buys 3 bags of 4 apples. How many does Tom have?")
    return run_both_ways(model, ids, "d2", gen_length=64, stop_at_eos=True)


@pytest.fixture(scope="module")
def small():
    return small_model()


def small_run(small, policy, decoder="confidence", **decoder_knobs):
    """Of a random model, in blocks; policy: (name, knobs)."""
    knobs = DECODER_KNOBS.get(decoder, {}) | decoder_knobs
    return run_both_ways(
        small,
        random_prompt(9),
        d2cache.make_policy(policy[0], **policy[1]),
        d2cache.make_decoder(decoder, **knobs),
        gen_length=16,
        block_length=8,
    )


def records(events) -> list[dict]:
    return [e for e in events if e["k"] == "rec"]


def plane(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).astype(float)


def cells(text: str, layers: int) -> np.ndarray:
    """The parts that a rec tells of, (L,T)."""
    pairs, out = base64.b64decode(text), []
    for value, times in zip(pairs[::2], pairs[1::2], strict=True):
        assert times > 0
        out += [value] * times
    return np.array(out).reshape(layers, -1)


def test_live_and_replayed_events_are_the_same(live):
    events, trace = live
    again = trace_events(trace, "key")
    kinds = [e["k"] for e in events]
    assert kinds.count("rec") == kinds.count("totals") == len(trace.seconds)
    assert 0 < kinds.count("guesses") <= len(trace.seconds)
    for a, b in zip(events[1:], again[1:], strict=True):
        assert a == b
    for name in ("stored", "steps"):
        again[0].pop(name), events[0].pop(name)
    assert events[0] == json.loads(json.dumps(again[0]))


def assert_earlier_candidates(events, again):
    """A trace keeps the candidates of the last write whole. Those of an earlier one are guesses,
    rounded, without the least; they are compared here and taken out of both."""
    last = {write[0]: r["s"] for r in records(events) for write in r["w"]}
    for live, told in zip(records(events), records(again), strict=True):
        for mine, kept in zip(live["w"], told["w"], strict=True):
            if last[mine[0]] > live["s"]:
                share = dict(map(tuple, kept[3]))
                for text, true in mine[3]:
                    assert share.pop(text, 0) == pytest.approx(true, rel=1e-3, abs=1 / 256)
                assert not share
                mine[3] = kept[3] = []


@pytest.mark.parametrize(
    "policy, decoder",
    [
        *((p, d) for p in POLICIES for d in ("confidence", "wino")),
        *((POLICIES[0], d) for d in DECODERS if d not in ("confidence", "wino")),
    ],
    ids=lambda one: one if isinstance(one, str) else f"{one[0]}-{one[1]}",
)
def test_every_method_tells_one_story_live_and_replayed(small, policy, decoder):
    """Of steps that write what was masked again, and of canvases that follow from the steps."""
    events, trace = small_run(small, policy, decoder)
    again = trace_events(trace, "key")
    assert_earlier_candidates(events, again)
    for name in ("stored", "steps"):
        again[0].pop(name), events[0].pop(name)
    assert json.loads(json.dumps(events)) == again
    canvas = [trace.text_of(int(i)) for i in trace.tokens[0]]
    mask = trace.text_of(trace.run["shape"]["mask_id"])
    for r in records(again):
        for at, text, _, _ in r["w"]:
            assert canvas[at] == mask != text
            canvas[at] = text
        for at in r["m"]:
            assert canvas[at] != mask
            canvas[at] = mask
        assert canvas == [trace.text_of(int(i)) for i in trace.tokens[r["s"] + 1]]


def test_what_wino_masks_again_is_told_and_can_be_written_a_second_time(small):
    events, trace = small_run(small, ("none", {}), "wino", wide_in=0.2, narrow_out=0.9)
    masked = [(r["s"], at) for r in records(events) for at in r["m"]]
    written = [(r["s"], write[0]) for r in records(events) for write in r["w"]]
    assert len(masked) > 3 and len(written) == 16 + len(masked)
    assert all(write[3] for r in records(events) for write in r["w"])
    s, at = masked[0]
    assert max(step for step, p in written if p == at) == trace.step_of_token[at - 9] > s


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
def test_events_count_what_each_layer_did(small, policy):
    events, trace = small_run(small, policy)
    start, layers = events[0], small.config.layers
    assert start["layers"] == layers and start["by_layer"] == (trace.parts is not None)
    for r in records(events):
        if trace.parts is None:
            assert r["a"] is None and r["out"] == 0 and r["rows"] == trace.recomputed[r["s"]].sum()
            continue
        parts = trace.parts[r["s"]]
        through = [[bool(byte & d2cache.Part.MLP) for byte in layer] for layer in parts]
        assert np.array_equal(cells(r["a"], layers), parts)
        assert r["rows"] == pytest.approx(sum(map(sum, through)) / layers, rel=1e-3)
        evicted = sum(bool(byte & d2cache.Part.EVICTED) for byte in parts.ravel())
        assert r["out"] == pytest.approx(evicted / layers, rel=1e-3)
        assert np.array_equal(np.any(through, axis=0), plane(r["y"]) > 0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
def test_what_a_hand_wrote_is_told_live_and_replayed_without_a_confidence(small, policy):
    mask = small.config.mask_id
    edits = [d2cache.Edit(2, {1: 5, 12: 7, 24: 8}), d2cache.Edit(4, {12: mask, 1: 6})]
    made = d2cache.make_policy(policy[0], **policy[1])
    events, trace = run_both_ways(
        small, random_prompt(9), made, gen_length=16, block_length=8, edits=edits
    )
    again = trace_events(trace, "key")
    hand = {2: [[1, "<5>", None, []], [12, "<7>", None, []], [24, "<8>", None, []]]}
    hand[4] = [[1, "<6>", None, []]]
    assert_earlier_candidates(events, again)
    canvas = [trace.text_of(int(i)) for i in trace.tokens[0]]
    for r in records(events):
        given = hand.get(r["s"], [])
        assert [w for w in r["w"] if w[0] in [h[0] for h in given]] == given
        assert r["m"] == ([12] if r["s"] == 4 else [])
        assert r["s"] in hand or all(w[2] is not None for w in r["w"])
        for write in r["w"]:
            canvas[write[0]] = write[1]
        for at in r["m"]:
            canvas[at] = trace.text_of(mask)
        assert canvas == [trace.text_of(int(i)) for i in trace.tokens[r["s"] + 1]]
    for name in ("stored", "steps"):
        again[0].pop(name), events[0].pop(name)
    assert json.loads(json.dumps(events)) == again


def test_a_file_that_writes_where_nothing_was_predicted_still_makes_events(small):
    events, trace = small_run(small, ("none", {}), "wino", wide_in=0.2, narrow_out=0.9)
    s, at = next((r["s"], r["m"][0]) for r in records(events) if r["m"])
    trace.confidence[: s + 1, at - 9] = -np.inf  # its first write, which no check looks at
    told = trace_events(trace, "key")
    message(told)
    assert None in [write[2] for r in records(told) for write in r["w"] if write[0] == at]


def test_planes_give_the_values_back(live):
    events, trace = live
    for record in records(events):
        s, c = record["s"], plane(record["c"])
        seen = np.isfinite(trace.confidence[s])
        assert np.array_equal(c > 0, seen)
        assert np.allclose((c[seen] - 1) / 254, trace.confidence[s][seen], atol=1 / 400)
        assert np.allclose(plane(record["d"]) / 255, trace.density[s], atol=1 / 400)
        mass = 2 ** (plane(record["r"]) / 16 - 8)
        assert np.allclose(mass, np.maximum(trace.rollout[s], 2**-8), rtol=0.03)
        assert np.array_equal(plane(record["y"]), trace.why[s])
        assert record["rows"] == trace.recomputed[s].sum()
        assert [w[0] - trace.prompt_length for w in record["w"]] == list(
            np.flatnonzero(trace.step_of_token == s)
        )


def test_the_last_totals_are_those_of_the_trace(live):
    events, trace = live
    last, totals = [e for e in events if e["k"] == "totals"][-1], trace.totals
    assert last["tokens"] == totals["answer_tokens"] > 10
    assert last["hit_rate"] == pytest.approx(totals["hit_rate"], rel=1e-3)
    assert last["flops"] / last["flops_none"] == pytest.approx(totals["flops_vs_none"])


def test_a_run_cut_short_says_so_and_a_finished_one_does_not(live, model):
    events, trace = live
    assert events[-1]["status"] == "done" and "not needed" in events[-1]["note"]
    steps = d2cache.generate(model, model.encode("Compute 3 + 4."), "none", gen_length=32)
    recorder = Recorder()
    for step in steps:
        recorder.add(step)
        if step.index == 4:
            assert ending(recorder.trace())[0] == "stopped"
    assert ending(recorder.trace()) == ("done", "")


def test_equal_parts_longer_than_a_byte_counts_are_told_in_pieces():
    parts = np.full((2, 600), 15, np.uint8)
    parts[1, 255:] = 3
    assert np.array_equal(cells(run_lengths(parts), 2), parts)
    assert len(base64.b64decode(run_lengths(parts))) == 2 * (4 + 2)


def test_a_run_says_where_it_stands_among_others(live, small):
    place = dict(board="b", lane=2, name="d2, k 8", branch=dict(lane=0, step=3, says="fixed"))
    assert live[0][0]["mask"] == live[1].run["shape"]["mask_id"]
    plain = dict(board="key", lane=0, name="d2", branch=None)
    trace = live[1]
    for told in (trace_events(trace, "key")[0], live[0][0]):
        assert {**told, **plain, "truth": False} == told
    told = trace_events(trace, "key", **place)[0]
    assert {**told, **place, "truth": False} == told
    step = next(d2cache.generate(small, [1, 2], "none", gen_length=4))
    told = LiveEvents("key", step, **place, truth=True).start()
    assert {**told, **place, "truth": True} == told


def look(step, kl, k_drift, v_drift=None, **lists):
    lists = dict(flips=(), oracle=(), recall=None) | lists
    v_drift = k_drift if v_drift is None else v_drift
    return probes.Look(step, np.array(k_drift), np.array(v_drift), np.array(kl), **lists)


def test_what_is_true_follows_its_step_and_gives_the_values_back(small):
    _, trace = small_run(small, ("none", {}))
    drift = np.array([0, 2.0**-14.1, 2.0**-14, 1e-3, 0.25, 1, 2])
    kl = np.array([np.nan, 0, -1e-9, 2.0**-12.1, 2.0**-11.95, 0.5, 3, 16, 90])
    one = look(3, kl, drift, drift[::-1], flips=(10, 12), oracle=(4, 11), recall=0.5)
    events = trace_events(trace, "key", looks=[one])
    assert events[0]["truth"] is True
    at = [e["k"] for e in events].index("truth")
    told = json.loads(message(events[at : at + 1]))["events"][0]
    assert records(events[:at])[-1]["s"] == told["s"] == 3
    assert (told["flips"], told["oracle"], told["recall"]) == ([10, 12], [4, 11], 0.5)
    for name, true in (("kd", drift), ("vd", drift[::-1])):
        code = plane(told[name])
        assert np.array_equal(code > 0, true >= 2.0**-14)
        back = 2 ** ((code - 255) / 16) * 2
        assert np.allclose(back[code > 0], true[code > 0], rtol=0.03)
    code, back = plane(told["kl"]), 2 ** ((plane(told["kl"]) - 255) / 16) * 16
    assert np.array_equal(code > 0, kl >= 2.0**-12)
    assert np.allclose(back[code > 0], np.minimum(kl[code > 0], 16), rtol=0.06)
    live = LiveEvents("key", next(d2cache.generate(small, [1, 2], gen_length=4)))
    assert live.truth(one) == events[at]


def test_what_stays_masked_comes_with_its_likeliest_tokens_where_they_are_new(small):
    steps = list(d2cache.generate(small, random_prompt(9), "none", gen_length=12))
    live, seen = LiveEvents("key", steps[0]), {}
    for step in steps[:8]:
        events = live.step(step)
        seen.update((at, top) for e in events if e["k"] == "guesses" for at, top in e["g"])
        target = step.rows.target[0].tolist()
        masked = (step.tokens[0] == small.config.mask_id).nonzero()[:, 0].tolist()
        assert set(masked) <= set(seen)
        for at in masked:  # what was sent last is still true, to within what is not sent
            ids, shares = (x[0, target.index(at)].tolist() for x in step.likeliest)
            sent = dict(map(tuple, seen[at]))
            for i, share in zip(ids, shares, strict=True):
                assert sent.get(f"<{i}>", 0) == pytest.approx(share, abs=FINEST + LEAST_SHARE)


def test_guesses_that_stay_are_not_sent_again(live):
    told = [e for e in live[0] if e["k"] == "guesses"]
    assert len(told[0]["g"]) == 63  # all that the first step left masked
    assert sum(len(e["g"]) for e in told[1:]) < 0.25 * sum(64 - e["s"] for e in told[1:])


@pytest.mark.parametrize("policy", ["d2", "dllm"])  # one with rollout, one by layer
def test_a_step_of_512_positions_fits_4_kilobytes(model, policy):
    ids = torch.cat([model.encode("Kate has a red hat. " * 60)[:256]])
    recorder = Recorder()
    for step in d2cache.generate(model, ids, policy, gen_length=256):
        recorder.add(step)
        if step.index == 8:
            break
    events = trace_events(recorder.trace(), "0123456789abcdef")
    sizes = [
        len(message([e for e in events if e["k"] in ("rec", "totals") and e["s"] == s]))
        for s in range(9)
    ]
    assert 1024 < max(sizes) <= 4096


def test_step_table_counts_what_the_trace_says(live):
    trace = live[1]
    frame = metrics.steps(trace)
    assert frame["rows"].tolist() == trace.recomputed.sum(1).tolist()
    assert np.allclose(frame["hit_rate"], 1 - frame["rows"] / trace.tokens.shape[1])
    assert frame["why_full"].tolist() == [trace.tokens.shape[1]] + [0] * (len(frame) - 1)
    assert frame["written"].sum() == (trace.step_of_token >= 0).sum()
    # what one step writes is what the next one recomputes for that reason
    assert frame["written"].iloc[:-1].tolist() == frame["why_written"].iloc[1:].tolist()
    assert frame["gflops"].sum() * 1e9 == pytest.approx(trace.totals["flops"])


@pytest.mark.parametrize("policy", ["d2", "dllm", "sparse"])
def test_layer_table_counts_and_ages_what_the_parts_say(small, policy):
    trace = small_run(small, next(p for p in POLICIES if p[0] == policy))[1]
    frame = metrics.layers(trace)
    steps, layers, length = trace.recomputed_by_layer.shape
    assert (trace.parts is None) == (policy == "d2") and len(frame) == steps * layers
    parts = dict(key=1, value=2, attention=4, mlp=8)
    age = {(name, i, t): -1 for name in parts for i in range(layers) for t in range(length)}
    evictions = 0
    for s in range(steps):
        for i in range(layers):
            line = frame.iloc[s * layers + i]
            row = [15 * r for r in trace.recomputed[s]] if policy == "d2" else trace.parts[s, i]
            assert (line["step"], line["layer"]) == (s, i)
            assert line["rows"] == sum(byte & 8 > 0 for byte in row)
            assert line["evicted"] == sum(byte & 16 > 0 for byte in row)
            evictions += line["evicted"]
            for name, bit in parts.items():
                for t, byte in enumerate(row):
                    before = age[name, i, t]
                    age[name, i, t] = 0 if byte & bit else before + (before >= 0)
                mean = sum(age[name, i, t] for t in range(length)) / length
                assert line[f"age_{name}"] == pytest.approx(mean)
    assert (evictions > 0) == (policy == "sparse")
    # of dllm's rows V are newer than outputs
    newer = (frame["age_value"] < frame["age_mlp"]).any()
    assert newer == (policy == "dllm") and (frame["age_mlp"] > 0).any()


def test_token_table_is_in_the_order_of_writing(live):
    trace = live[1]
    frame = metrics.tokens(trace)
    assert frame["step"].is_monotonic_increasing
    assert sorted(frame["position"]) == list(np.flatnonzero(trace.step_of_token >= 0))
    one = frame.iloc[3]
    assert one["distance"] == abs(one["position"] - frame.iloc[2]["position"])
    ids = trace.tokens[-1, trace.prompt_length + frame["position"].to_numpy()]
    assert frame["token"].tolist() == [trace.text_of(int(i)) for i in ids]


def test_figures_draw_the_tables(live):
    steps, tokens = metrics.steps(live[1]), metrics.tokens(live[1])
    work = figures.work_per_step(steps)
    assert list(work.data[0].y) == list(steps["hit_rate"])
    assert list(work.data[1].y) == list(steps["milliseconds"]) and work.data[1].yaxis == "y2"
    order = figures.decode_order(tokens)
    assert list(order.data[0].y) == list(tokens["position"])
    distance = figures.write_distance(tokens)
    assert (
        len(distance.data[0].x) == tokens["distance"].notna().sum() and max(distance.data[1].y) == 1
    )
    over_time = figures.confidence_over_time(tokens)
    assert list(over_time.data[0].y) == list(tokens["confidence"])
    for figure in (work, order, distance, over_time):
        assert isinstance(figure, go.Figure) and figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text and figure.layout.title.text


def test_rollout_map_of_the_full_pass_has_the_runs_column_sums(live, model):
    trace = live[1]
    dense = probes.rollout_map(model, trace, 0)
    assert np.allclose(dense.sum(1), 1, atol=1e-4)
    assert np.allclose(dense.sum(0), trace.rollout[0], atol=1e-3)  # step 0 of d2 is a full pass
    with pytest.raises(IndexError, match="steps 0 to"):
        probes.rollout_map(model, trace, len(trace.seconds))


def test_a_large_map_is_averaged_down_and_keeps_its_shape():
    rollout = np.zeros((600, 600), np.float32)
    rollout[:300, 150] = 1
    sent = map_payload(rollout, 100)
    grid = plane(sent["map"]).reshape(sent["n"], sent["n"])
    assert sent["n"] == LARGEST_MAP and grid[: sent["n"] // 2 - 1].max(1).min() > 150
    assert grid[sent["n"] // 2 + 1 :].max() == 0
    assert abs(grid[0].argmax() / sent["n"] - 0.25) < 0.01
    assert sent["largest"] == 3, "rows of 600 meet in 256 cells, three in some"


def test_bench_prints_limits_and_ratios(capsys):
    arguments = "--policies d2,none --prompt-length 24 --gen-length 8 --repeats 1 --json".split()
    assert bench.main(arguments) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [r["policy"] for r in last["policies"]] == ["none", "d2"]
    none, d2 = last["policies"]
    assert none["ratio"] == 1 and none["hit_rate"] == 0 and d2["hit_rate"] > 0
    assert d2["ratio"] == pytest.approx(d2["steps_per_second"] / none["steps_per_second"])


def test_bench_states_the_error_of_8_bit_weights(capsys):
    few = "--policies none --gen-length 8 --weights fp8 --json".split()
    for arguments in ("--prompt-length 24 --repeats 1", "--shape tiny --device cpu --lengths 24"):
        assert bench.main([*few, *arguments.split()]) == 0
        *lines, last = capsys.readouterr().out.strip().splitlines()
        found = json.loads(last)
        c = d2cache.CONFIGS["tiny"]
        products = c.layers * (4 * c.width**2 + 3 * c.width * c.mlp)
        rows = c.layers * (5 * c.width + 2 * c.mlp) + c.vocab
        norms = 4 * c.width * (2 * c.layers + 1)
        embed = 0 if "shape" in found else 4 * c.vocab * c.width
        assert found["weights"] == "fp8"
        assert found["weights_bytes"] == products + c.vocab * c.width + 4 * rows + norms + embed
        low, high = (0.03, 0.3) if "shape" in found else (0.003, 0.03)
        assert low < found["logits_error"] < high
        said = f"off by {100 * found['logits_error']:.2f} % of their norm"
        assert sum(said in line for line in lines) == 1
    assert bench.main(few[:4] + "--prompt-length 24 --repeats 1 --json".split()) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["weights"] is None and found["logits_error"] is None


def test_the_error_is_that_of_the_logits_before_and_after():
    model = d2cache.load("tiny", "cpu")
    ids = model.encode("Compute 3 + 4 * 5.")
    first = lambda m: next(d2cache.generate(m, ids, "none", gen_length=64)).logits[..., :-1]
    before = first(model)
    error = bench.narrowed(model, ids, 64)
    after = first(d2cache.load("tiny", "cpu", weights="fp8"))
    assert torch.equal(after, first(model))
    assert error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)


def test_study_prints_a_table_and_refuses_what_it_does_not_know(capsys, monkeypatch):
    arguments = ["--problems", "2", "--families", "lists", "--policies", "none,d2", "--json"]
    assert study.main(arguments) == 0
    out = capsys.readouterr().out
    results = json.loads(out.strip().splitlines()[-1])["results"]
    assert {r["policy"] for r in results} == {"none", "d2"}
    assert all(0 <= r["accuracy"] <= 1 and r["problems"] == 2 for r in results)
    weights, exam = [], study.exam
    with monkeypatch.context() as patch:
        patch.setattr(
            study, "exam", lambda m, *a, **s: weights.append(m.weights) or exam(m, *a, **s)
        )
        assert study.main([*arguments, "--weights", "fp8"]) == 0
    assert weights == ["fp8", "fp8"]
    out = capsys.readouterr().out
    assert json.loads(out.strip().splitlines()[-1])["weights"] == "fp8"
    assert "float32, weights in fp8" in out
    for bad, said in (
        (["--families", "poems"], "poems"),
        (["--policies", ","], "--policies is ','; give at least one name"),
        (["--seed", "-1"], "--seed is -1"),
        (["--show", "some"], "--show is 'some'"),
        (["--speed"], "unrecognized arguments: --speed"),
        (["--device", "cpu", "--devices", "cpu"], "not allowed with argument --device"),
        (["--problems", "0"], "--problems is 0"),
        (["--shots", "99"], "--shots is 99"),
        (["--shots", "1", "--families", "all"], "--shots is for questions; holes has texts"),
        (["--calibration", "--json"], "--json is for exams"),
        (["--model", "nowhere/../x"], "no model folder"),
    ):
        assert study.main(bad) == 2
        err = capsys.readouterr().err
        assert said in err and err.startswith("study: ") and err.count("\n") == 1


def test_a_study_compares_decoders_with_and_without_a_prior(capsys):
    arguments = "--problems 2 --families lists --policies none --sigma 0,10 --json".split()
    assert study.main(arguments) == 0
    out = capsys.readouterr().out
    results = json.loads(out.strip().splitlines()[-1])["results"]
    assert [r["sigma"] for r in results] == [0, 10]
    assert "none confidence sigma 0 " in out and "none confidence sigma 10 " in out
    assert study.main(["--sigma", "0,x"]) == 2
    assert "--sigma is 'x'; it must be a number" in capsys.readouterr().err


def test_a_study_of_the_calibration_has_a_line_for_each_family(capsys):
    assert study.main("--calibration --problems 2 --families lists,arithmetic".split()) == 0
    head, *lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert head == ["family", "tokens", "right", "confidence", "error", "saturated"]
    assert [line[0] for line in lines] == ["lists", "arithmetic"]
    for _, tokens, *shares in lines:
        assert int(tokens) > 4 and all(0 <= float(share) <= 1 for share in shares)


def test_a_study_shows_how_far_an_exam_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    arguments = "--problems 3 --batch 2 --families lists --policies none".split()
    assert study.main([*arguments, "--progress"]) == 0
    counts = [int(n) for n in re.findall(r"(\d)/3", capsys.readouterr().err)]
    assert counts == sorted(counts) and set(counts) >= {0, 2, 3}
    assert study.main(arguments) == 0
    assert capsys.readouterr().err.count("\n") == 1  # the line of the exam: no terminal, no bar


@pytest.mark.parametrize(
    "bad, said",
    [
        ("--policies ,", "at least one name"),
        ("--repeats 0", "--repeats is 0"),
        ("--steps 0", "--steps is 0"),
        ("--steps 4", "--steps is for --shape only"),
        ("--lengths 64", "--lengths is for --shape only"),
        ("--shape tiny --repeats 2", "--repeats is without --shape only"),
        ("--shape tiny --model tiny", "--model is without --shape only"),
        ("--shape tiny --steps 1", "--steps is 1"),
        ("--shape tiny --lengths 64,many", "--lengths is 'many'"),
        ("--shape tiny --lengths 2000 --gen-length 8", "9 to 1024 positions"),
        ("--shape tiny --rollout-p 3", "rollout_p is 3.0"),
        ("--shape tiny --rollout-p 0.3 --policies none", "which --policies leaves out"),
        ("--gen-length 1", "--gen-length is 1"),
        ("--speed", "unrecognized arguments: --speed"),
        ("--gen-length 5000", "room for 1024"),
        ("--policies d9", "unknown policy"),
    ],
)
def test_bench_refuses_what_it_cannot_measure(bad, said, capsys):
    assert bench.main(bad.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("bench: ") and err.count("\n") == 1


def test_bench_says_in_a_line_that_weights_are_not_numbers(tmp_path, capsys):
    folder = shutil.copytree(bundled.ASSETS / "tiny", tmp_path / "broken")
    for path in folder.glob("model-*.safetensors"):
        tensors = load_file(path)
        save_file({name: t * torch.nan for name, t in tensors.items()}, path)
    few = f"--model {folder} --prompt-length 8 --gen-length 4 --repeats 1 --policies none".split()
    for weights in ([], ["--weights", "fp8"]):
        assert bench.main([*few, *weights]) == 2
        err = capsys.readouterr().err
        assert err.startswith("bench: the logits are not numbers in step 0: ")
        assert err.count("\n") == 1


def test_distance_is_to_what_the_step_before_wrote(model):
    decoder = d2cache.make_decoder("threshold", threshold=0.5, sigma=0.0)
    ids = model.encode("Compute 3 + 4 * 5.")
    trace = d2cache.Trace.record(d2cache.generate(model, ids, "none", decoder, gen_length=32))
    frame = metrics.tokens(trace)
    assert frame["step"].value_counts().max() > 1  # several tokens a step, or this shows nothing
    for row in frame.itertuples():
        before = frame["position"][frame["step"] == row.step - 1]
        nearest = (before - row.position).abs().min()
        assert row.distance == nearest or (row.step == 0 and np.isnan(row.distance))


def test_a_step_that_doubts_tokens_counts_them_apart_from_what_it_writes(model):
    decoder = d2cache.make_decoder("wino", wide_in=0.1, narrow_out=1.0)
    ids = model.encode("Compute 3 + 4 * 5.")
    trace = d2cache.Trace.record(d2cache.generate(model, ids, "none", decoder, gen_length=32))
    frame, mask = metrics.steps(trace), trace.run["shape"]["mask_id"]
    assert frame["masked_again"].sum() > 0, "guard: it must doubt something"
    for s in range(len(frame)):
        before, after = trace.tokens[s], trace.tokens[s + 1]
        moved = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
        assert frame["written"][s] == sum(a != mask for _, a in moved)
        assert frame["masked_again"][s] == sum(a == mask for _, a in moved)
    assert frame["written"].sum() - frame["masked_again"].sum() == 32
    assert sorted(metrics.tokens(trace)["position"]) == list(range(32))
    cut = d2cache.Trace.record(
        step
        for step, _ in zip(
            d2cache.generate(model, ids, "none", decoder, gen_length=32), range(2), strict=False
        )
    )
    left = np.flatnonzero(cut.tokens[-1, cut.prompt_length :] == mask)
    assert len(left) and not set(metrics.tokens(cut)["position"]) & set(left)


def test_a_study_on_two_devices_makes_the_same_table(capsys):
    arguments = "--problems 2 --families lists,arithmetic --policies none,d2 --json".split()
    tables = []
    for devices in (["--device", "cpu"], ["--devices", "cpu,cpu"]):
        assert study.main([*arguments, *devices]) == 0
        results = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["results"]
        tables.append([{k: v for k, v in r.items() if k != "seconds"} for r in results])
    assert tables[0] == tables[1] and len(tables[0]) == 4
    assert study.main(["--devices", "cpu,tpu"]) == 2
    assert "unknown device 'tpu'" in capsys.readouterr().err


def test_a_study_of_decoders_counts_the_steps_of_each_problem(capsys):
    arguments = "--problems 2 --families arithmetic --policies none --block-length 8 --json"
    assert study.main([*arguments.split(), "--decoders", "confidence,threshold"]) == 0
    results = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["results"]
    one, many = (next(r for r in results if r["decoder"] == d) for d in ("confidence", "threshold"))
    assert 1 <= many["steps"] < one["steps"] <= 64
    for bad, said in ((["--decoders", "d9"], "d9"), (["--block-length", "0"], "--block-length is")):
        assert study.main(bad) == 2
        assert said in capsys.readouterr().err


def test_bench_measures_products_as_a_model_computes_them(monkeypatch):
    cpu, asked = torch.device("cpu"), []
    monkeypatch.setattr(Linear, "forward", lambda self, x: asked.append(self.weight.stride()) or x)
    bench.limits(cpu, torch.float32)
    by_columns = torch.backends.mkldnn.is_available()
    assert set(asked) == {(1, 1024) if by_columns else (1024, 1)}
    model = bench.random_model("tiny", [cpu], torch.float32)
    assert model.head.weight.stride() == ((1, 1024) if by_columns else (256, 1))
