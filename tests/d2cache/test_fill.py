"""Masks among text: what is given stays, every mask is written, and the rest is as without gaps."""

import json
from dataclasses import replace

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
    naive_density,
    random_prompt,
    run,
    small_model,
)
from safetensors import safe_open

import d2cache
from d2cache import Edit, Trace
from d2cache.__main__ import main
from d2cache.generate import open_canvas
from d2cache.prompts import has_gap
from d2cache.trace import agreement

MASK, END = SMALL.mask_id, SMALL.eos_id
MODEL = small_model(1)


def with_masks(length: int, *gaps: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Random ids with masks in these ranges."""
    ids = random_prompt(length, seed)
    for start, stop in gaps:
        ids[start:stop] = MASK
    return ids


TEXT = with_masks(20, (3, 6), (9, 10), (13, 17), seed=3)
# of three lengths: the longest begins with a mask, and one has a single gap, which ends it
BATCH = [
    with_masks(15, (12, 15), seed=5),
    with_masks(22, (0, 5), (9, 10), (13, 17), seed=4),
    TEXT,
]


def decoder_of(name: str) -> tuple[str, dict]:
    return name, DECODER_KNOBS.get(name, {})


def steps_of(ids, policy="none", decoder="confidence", **settings):
    return run(MODEL, ids, policy, decoder, gen_length=0, **settings)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_given_text_stays_and_every_mask_is_written(policy, decoder):
    for step in steps_of(TEXT, policy, decoder_of(decoder), block_length=5):
        kept = TEXT != MASK
        assert torch.equal(step.after.tokens[0][kept], TEXT[kept])
        assert not (step.written[0] & kept).any()
        assert not ((step.confidence[0] > -torch.inf) & kept).any()
    assert not (step.after.tokens == MASK).any() and not step.after.live.any()


# in most steps nothing is due in a row that begins with a mask, but in its mates
RARE = ("dllm", dict(kp=1, kr=50, rho=0.0))


# the decoder that looks at more than the scores of this step comes with every policy
@pytest.mark.parametrize(
    "policy, decoder",
    [(p, d) for p in [*POLICIES, RARE] for d in ("confidence", "wino")]
    + [(("d2", dict(current_k=4, sigma=3.0)), d) for d in DECODERS],
    ids=str,
)
def test_batch_mates_and_padding_change_no_row(policy, decoder):
    settings = dict(block_length=4, policy=policy, decoder=decoder_of(decoder))
    name, knobs = settings["decoder"]
    settings["decoder"] = name, {**knobs, "temperature": 0.7} if name == "confidence" else knobs
    batch = Trace.record(steps_of(BATCH, seed=[5, 6, 7], **settings))
    for b, ids in enumerate(BATCH):
        one, alone = batch.row(b), Trace.record(steps_of(ids, seed=5 + b, **settings))
        assert one.run == alone.run
        for name in ("tokens", "step_of_token", "recomputed", "why"):
            assert np.array_equal(getattr(one, name), getattr(alone, name)), (b, name)
        assert np.allclose(one.confidence, alone.confidence, atol=1e-9)
        assert np.allclose(one.density, alone.density, atol=1e-6)
        assert np.array_equal(one.guess_count, alone.guess_count)
        assert np.array_equal(one.filled, alone.filled)
        assert (one.parts is None) == (alone.parts is None)
        assert one.parts is None or np.array_equal(one.parts, alone.parts)


@pytest.mark.parametrize("policy", [p for p in POLICIES if p[0] == "d2"], ids=str)
def test_batch_mates_change_no_row_of_a_model_that_predicts_the_next_token(policy):
    model, batch = small_model(1, shift=1), [BATCH[0], with_masks(22, (2, 5), (13, 17)), TEXT]
    settings = dict(gen_length=0, block_length=4)
    rows = Trace.record(run(model, batch, policy, **settings))
    for b, ids in enumerate(batch):
        alone = Trace.record(run(model, ids, policy, **settings))
        assert np.array_equal(rows.row(b).tokens, alone.tokens)
        assert np.array_equal(rows.row(b).why, alone.why)


def test_a_gap_that_ends_the_text_is_an_ordinary_answer():
    ids = random_prompt(7, 2)
    for policy in POLICIES:
        filled = steps_of(torch.cat((ids, torch.full((9,), MASK))), policy, block_length=4)
        plain = run(MODEL, ids, policy, gen_length=9, block_length=4)
        assert torch.equal(confidences(filled), confidences(plain))
        assert torch.equal(filled[-1].tokens, plain[-1].tokens)
        assert filled[0].run.settings() == plain[0].run.settings()
        assert "given" not in plain[0].run.settings() and plain[0].before.given is None


def test_masks_can_be_appended_to_a_text_with_gaps():
    steps = run(MODEL, TEXT, "none", gen_length=6)
    whole = torch.cat((TEXT, torch.full((6,), MASK)))
    assert torch.equal(steps[0].before.tokens[0], whole) and len(steps) == 8 + 6
    assert torch.equal(steps[-1].tokens, steps_of(whole)[-1].tokens)
    assert steps[0].run.prompt_length == 3 and steps[0].run.gen_length == 23
    # without a length: the gaps alone, or the usual answer
    assert open_canvas(MODEL, TEXT).tokens.shape == (1, 20)
    assert open_canvas(MODEL, [1, 2]).tokens.shape == (1, 130)


def test_density_looks_at_known_text_on_both_sides():
    step = steps_of(TEXT)[3]
    known = (step.before.tokens[0] != MASK).tolist()
    assert torch.allclose(
        step.before.density(2.0)[0].double(), torch.tensor(naive_density(known, 2.0)).double()
    )
    first = open_canvas(MODEL, with_masks(30, (12, 18))).density(3.0)[0]
    assert torch.allclose(first, first.flip(0))


def test_d2_that_recomputes_everything_is_exact():
    whole = ("d2", dict(current_k=1024, rollout_p=1.0, sigma=3.0))
    exact, cached = (confidences(steps_of(TEXT, policy)) for policy in ("none", whole))
    assert_same_confidence(exact, cached, 1e-9)


def test_the_shipped_padding_of_a_row_is_its_own():
    canvas = open_canvas(MODEL, BATCH)
    density = canvas.density(3.0, as_shipped=True)
    for b, ids in enumerate(BATCH):
        alone = open_canvas(MODEL, ids).density(3.0, as_shipped=True)[0]
        assert torch.equal(density[b, -len(ids) :], alone)


def test_a_given_end_of_text_ends_nothing():
    ids = TEXT.clone()
    ids[[1, 7]] = END
    steps = run(MODEL, ids, "none", gen_length=0, stop_at_eos=True)
    assert len(steps) == 8 and not steps[-1].after.masked.any()


def test_only_an_end_that_no_text_follows_ends_a_row():
    """Once written, an end of text inside a gap is a token; in the last gap it ends the row."""
    inner = open_canvas(MODEL, TEXT, 3, stop_at_eos=True)
    tokens = inner.tokens.clone()
    tokens[0, 3] = END
    written = replace(inner, tokens=tokens)
    assert written.live.all()
    tokens = tokens.clone()
    tokens[0, [3, 4, 5, 9, 13, 14, 15, 16, 20]] = END
    assert not replace(inner, tokens=tokens).live.any()


def test_a_run_with_gaps_leaves_graphs_and_kernels_alone(monkeypatch):
    from d2cache import generate as module

    seen = []

    def worker(model, policy, eager):
        seen.append(eager)
        return real(model, policy, eager)

    engine = __import__("sys").modules[module.__module__]
    real = engine._worker
    monkeypatch.setattr(engine, "_worker", worker)
    steps_of(TEXT)
    run(MODEL, [1, 2], gen_length=2)
    assert seen == [True, False]


@pytest.mark.parametrize("policy", ["none", "d2", "dllm"])
def test_a_trace_keeps_what_was_given(policy, tmp_path):
    trace = Trace.record(steps_of(TEXT, policy))
    trace.save(tmp_path / "gaps")
    assert Trace.load(tmp_path / "gaps") == trace
    with safe_open(tmp_path / "gaps", "np") as file:
        assert json.loads(file.metadata()["trace"])["run"]["given"] == [
            [[6, 9], [10, 13], [17, 20]]
        ]
    blank = (TEXT == MASK).numpy()
    assert np.array_equal(trace.filled, blank[3:])
    assert np.array_equal(trace.answer, trace.tokens[-1][blank])
    assert np.array_equal(trace.text_ids, trace.tokens[-1])
    assert trace.totals["answer_tokens"] == 8
    other = Trace.record(steps_of(TEXT, "none", ("random", {})))
    assert agreement(trace, other) == (trace.answer == other.answer).mean()


def test_a_trace_with_other_given_positions_than_it_says_is_refused(tmp_path):
    trace = Trace.record(steps_of(TEXT))
    for given in ([[[6, 8]]], [[[2, 9]]], [[[7, 6]]], [], [[]], [[[6, 21]]], [[[6, 9], [8, 13]]]):
        trace.header["run"]["given"] = given
        trace.save(tmp_path / "bad")
        with pytest.raises(ValueError, match="given"):
            Trace.load(tmp_path / "bad")


def test_an_edit_masks_given_text_after_the_first_mask():
    edit = Edit(1, {7: MASK, 4: MASK})
    steps = steps_of(TEXT, "d2", edits=[edit])
    assert steps[1].after.masked[0, 7] and not (steps[-1].tokens == MASK).any()
    trace = Trace.record(steps)
    assert trace.filled.sum() == 9 and trace.step_of_token[7 - 3] > 1
    with pytest.raises(ValueError, match="only positions from 3 on"):
        steps_of(TEXT, edits=[Edit(1, {2: MASK})])
    with pytest.raises(ValueError, match="at most the steps 0 to 7"):
        steps_of(TEXT, edits=[Edit(8, {4: 1})])


def test_text_may_begin_with_a_gap(tmp_path):
    trace = Trace.record(steps_of(with_masks(9, (0, 3)), "d2"))
    assert trace.prompt_length == 0 and len(trace.answer) == 3
    trace.save(tmp_path / "gap")
    assert Trace.load(tmp_path / "gap") == trace
    with pytest.raises(ValueError, match="put at least one token in front"):
        run(small_model(shift=1), with_masks(9, (0, 3)), gen_length=0)
    shifted = run(small_model(shift=1), TEXT, "d2", gen_length=0)
    assert len(shifted) == 8 and not (shifted[-1].tokens == MASK).any()


@pytest.mark.parametrize(
    "ids, words",
    [
        ([1, 2, 3], "or 0 where the prompts hold masks to fill, id 59"),
        ([[1, MASK, 3], [1, 2, 3]], "row 1 of prompt_ids holds no mask"),
        ([MASK, MASK], "nothing but masks"),
        ([1] * 300 + [MASK], "the text has 301 tokens, masks included; small has room for 256"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_one_line(ids, words):
    with pytest.raises(ValueError, match=words) as caught:
        run(MODEL, ids, gen_length=0)
    assert "\n" not in str(caught.value)


GAPS = {
    "He buys ___ of 4 apples.": 3,
    "___ has 5 apples": 3,
    "It is _": 1,
    "(__), then ____!": 6,
    "two  __ spaces": 2,
    "a_b": 0,
    "__init__": 0,
    "x_ and _y": 0,
    "é_": 0,
    "3___": 0,
    "none": 0,
}


@pytest.fixture(scope="module")
def tiny():
    return d2cache.load("tiny", device="cpu")


@pytest.mark.parametrize("text, masks", GAPS.items())
def test_underscores_that_touch_no_letter_or_digit_are_a_gap(tiny, text, masks):
    assert has_gap(text) == bool(masks)
    if not masks:
        with pytest.raises(ValueError, match="has no gap; write underscores"):
            tiny.encode_gaps(text)
        return
    ids = tiny.encode_gaps(text)
    assert (ids == tiny.config.mask_id).sum() == masks
    for gap in ("____", "___", "__", "_"):  # what is left is the text without gap and space
        text = text.replace(f"  {gap}", " ").replace(f" {gap}", "").replace(gap, "")
    assert tiny.decode(ids) == text


def test_fill_takes_a_text_or_several_or_ids(tiny):
    text = "Tom has 5 apples. He buys ___ of 4 apples."
    steps = list(d2cache.fill(tiny, text, "none"))
    ids = tiny.encode_gaps(text)
    assert torch.equal(list(d2cache.fill(tiny, ids, "none"))[-1].tokens, steps[-1].tokens)
    several = list(d2cache.fill(tiny, [text, "Compute 3 + _ = 7."], "none"))
    assert torch.equal(several[-1].tokens[0], steps[-1].tokens[0])
    whole = tiny.decode(Trace.record(steps).text_ids)
    assert whole.startswith("Tom has 5 apples. He buys") and whole.endswith(" of 4 apples.")
    with pytest.raises(ValueError, match="special token"):
        tiny.encode_gaps("<|endoftext|> ___")


def test_the_command_prints_the_whole_text(capsys, tmp_path):
    text, file = "Tom has 5 apples. He buys ___ of 4 apples.", str(tmp_path / "t")
    assert main(["fill", text, "--policy", "none", "--json", "--trace", file]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Tom has 5 apples. He buys") and first.endswith(" of 4 apples.")
    assert json.loads(last)["text"] == first and Trace.load(file).run["given"]
    assert main(["fill", "It is ___"]) == 0
    assert capsys.readouterr().out.startswith("It is")
    for words in ("no gap here", " "):
        assert main(["fill", words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
