"""Figures of a run: what they draw, say and hand out must be what the run did."""

import base64
import io
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from lab import random_prompt, small_model

import d2cache
from analysis import figures, metrics, probes, report
from analysis.page import stored


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def story():
    return stored.load("d2-story")


@pytest.fixture(scope="module")
def drawn(model, story):
    return {
        one["key"]: one for one in report.run_figures(story, probes.rollout_columns(model, story))
    }


def table(one: dict) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(one["csv"]), keep_default_na=False, na_values=[""])


def values(sent) -> np.ndarray:
    """An array of plotly's JSON, which may be base64."""
    if not isinstance(sent, dict):
        return np.array(sent)
    flat = np.frombuffer(base64.b64decode(sent["bdata"]), sent["dtype"])
    return flat.reshape([int(n) for n in sent.get("shape", "-1").split(",")])


def test_every_figure_is_whole_plain_json_and_opens_as_plotly(drawn):
    wanted = ["work", "order", "distance", "confidence", "tail", "sure", "rollout"]
    assert list(drawn) == wanted
    assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn
    for one in drawn.values():
        assert set(one) == {"key", "title", "caption", "figure", "csv"}
        figure = go.Figure(one["figure"])
        assert figure.layout.title.text == one["title"] and len(figure.data)
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
        assert 60 < len(one["caption"]) < 330 and one["caption"].endswith(".")
        assert len(table(one)) > 3 and len(json.dumps(one)) < 300_000


def test_steps_and_positions_count_from_one_as_on_the_page(drawn, story):
    data = table(drawn["order"])
    assert data["step"].min() == data["position"].min() == 1
    at = data["position"].to_numpy() - 1
    assert np.array_equal(story.step_of_token[at] + 1, data["step"])
    assert list(values(drawn["order"]["figure"]["data"][0]["y"])) == list(data["position"])
    assert table(drawn["work"])["step"].tolist() == list(range(1, len(story.seconds) + 1))


def test_the_rollouts_change_is_the_share_that_lies_elsewhere():
    columns = np.array([[2.0, 1, 0, 0], [4, 2, 0, 0], [0, 0, 3, 0], [1, 0.5, 1.5, 0]])
    change, steps = report.change_of(columns)
    assert steps.tolist() == [1, 2, 3, 4]
    assert np.allclose(change, change.T) and np.allclose(np.diagonal(change), 0)
    assert np.allclose(change[0], [0, 0, 1, 0.5])  # the sum of a step does not matter
    long = np.random.default_rng(0).random((300, 5))
    change, steps = report.change_of(long)
    assert len(steps) <= report.MOST_STEPS and steps[0] == 1 and change.shape == (100, 100)
    part = long / long.sum(1, keepdims=True)
    assert np.isclose(change[2, 7], np.abs(part[steps[2] - 1] - part[steps[7] - 1]).sum() / 2)


def test_the_rollout_figure_holds_that_table(drawn, model, story):
    change, steps = report.change_of(probes.rollout_columns(model, story))
    assert np.allclose(values(drawn["rollout"]["figure"]["data"][0]["z"]), change)
    assert np.allclose(table(drawn["rollout"]).iloc[:, 1:], change, rtol=1e-4, atol=1e-6)
    assert f"{np.diagonal(change, 1).mean():.1%}" in drawn["rollout"]["caption"]
    assert "rollout" not in {one["key"] for one in report.run_figures(story)}


def test_sure_is_the_first_step_whose_guess_reaches_it(story):
    sure = report.sure_of(story)
    ids = story.tokens[-1, story.prompt_length :]
    assert sure["end"].sum() == (ids == story.run["shape"]["eos_id"]).sum()
    for line in sure.itertuples():
        seen = story.confidence[:, line.position - 1]
        steps = np.flatnonzero(seen >= figures.SURE)
        assert line.written == story.step_of_token[line.position - 1] + 1
        assert line.sure == steps[0] + 1 if len(steps) else np.isnan(line.sure)


def test_the_tail_is_what_the_model_said_and_a_gap_where_it_said_nothing(story):
    frame = report.certainty_of(story)
    assert frame["step"].min() == 1 and frame["step"].nunique() <= 5
    assert frame["step"].max() <= len(story.seconds) / 2 + 1
    for line in frame.itertuples():
        said = story.confidence[line.step - 1, line.position - 1]
        assert np.isnan(line.confidence) if np.isinf(said) else line.confidence == said
    assert frame["confidence"].isna().any()  # d2 predicts few places
    figure = figures.tail_confidence(frame)
    for trace, (step, part) in zip(figure.data, frame.groupby("step"), strict=True):
        assert trace.name == f"step {step}"
        assert np.array_equal(trace.y, part["confidence"], equal_nan=True)


def test_sigmas_are_one_figure_with_a_panel_each(model):
    ids = model.encode("Tom has 5 apples. He buys 3 bags of 4 apples. How many does Tom have?")
    traces = {
        sigma: d2cache.Trace.record(
            d2cache.generate(
                model, ids, "none", d2cache.make_decoder("confidence", sigma=sigma), gen_length=24
            )
        )
        for sigma in (0.0, 3.0)
    }
    one = report.sigma_figure(traces)
    figure, data = go.Figure(one["figure"]), table(one)
    assert [note.text for note in figure.layout.annotations] == ["σ = 0 (no prior)", "σ = 3"]
    for drawn, (sigma, trace) in zip(one["figure"]["data"], traces.items(), strict=True):
        frame = metrics.tokens(trace)
        assert list(values(drawn["x"])) == list(frame["position"] + 1)
        assert list(values(drawn["y"])) == list(frame["step"] + 1)
        assert (data["sigma"] == sigma).sum() == len(frame)
        assert f"{frame['distance'].mean():.1f} at σ = {sigma:g}" in one["caption"]


@pytest.mark.parametrize(
    "policy, decoder, knobs",
    [
        ("none", "threshold", {"threshold": 0.0}),
        ("dllm", "confidence", {}),
        ("prefix", "wino", {"wide_in": 0.35, "narrow_out": 0.5}),
        ("none", "random", {"tokens_per_step": 4}),
    ],
)
def test_figures_of_odd_runs_are_whole_too(policy, decoder, knobs):
    """One step, words masked again, no end token, several at once."""
    steps = d2cache.generate(
        small_model(),
        random_prompt(5),
        policy,
        d2cache.make_decoder(decoder, **knobs),
        gen_length=8,
    )
    trace = d2cache.Trace.record(steps)
    for one in report.run_figures(trace, np.ones((len(trace.seconds), trace.tokens.shape[1]))):
        assert "nan" not in one["caption"].lower(), one["caption"]
        json.dumps(one, allow_nan=False)
        assert one["csv"].count("\n") >= 1
