"""What the stage asks: answers are the probes' own, and nothing asked can break the page."""

import base64
import json

import numpy as np
import pytest

import d2cache
from analysis import probes
from analysis.page.boards import Board, Boards, Run, advance
from analysis.page.models import Models
from analysis.page.query import Asked, Lane
from analysis.page.questions import Questions
from d2cache.trace import Trace


@pytest.fixture(scope="module")
def asks():
    models = Models({"tiny": "tiny"})
    boards = Boards()
    board = Board("b", Asked("Sort 5 2 9 1.", (Lane("none"), Lane("d2")), gen_length=24))
    for lane in board.asked.lanes:
        board.start(lane, models.get("tiny"))
    for _ in advance(board):
        pass
    boards.put("session", board)
    return Questions(boards, models)


@pytest.fixture(scope="module")
def run(asks):
    return asks.boards.of("session").runs[1]


def ask(asks, name, **given) -> dict:
    answer = asks.answer(json.dumps([name, given]))
    json.dumps(answer, allow_nan=False)
    return answer


@pytest.mark.parametrize("layer", ["rollout", 0, 7])
def test_a_map_is_the_probes_with_its_columns(asks, run, layer):
    got = ask(asks, "attention", run=run.key, step=3, layer=layer)
    wanted = (
        probes.rollout_map(run.model, run.trace, 3)
        if layer == "rollout"
        else probes.attention_map(run.model, run.trace, 3, layer)
    )
    n, T = got["n"], run.trace.tokens.shape[1]
    shade = np.frombuffer(base64.b64decode(got["map"]), np.uint8).reshape(n, n) / 255
    assert n == T and got["layers"] == 8 and got["prompt"] == run.trace.prompt_length
    assert got["largest"] == pytest.approx(wanted.max(), rel=1e-3)
    np.testing.assert_allclose(shade**2 * got["largest"], wanted, atol=0.005 * wanted.max())
    np.testing.assert_allclose(got["columns"], wanted.sum(0) / wanted.sum(0).mean(), rtol=2e-3)


def test_the_life_of_a_position_has_a_point_for_every_step(asks, run):
    got = ask(asks, "life", run=run.key, position=run.trace.prompt_length + 2)
    steps = len(run.trace.seconds)
    assert np.shape(got["k"]) == np.shape(got["v"]) == (steps, 2)
    assert len(got["moved"]["k"]) == steps and 0 < sum(got["explained"]["v"]) <= 1.001


def test_figures_and_their_data(asks, run):
    got = ask(asks, "figures", run=run.key)["figures"]
    assert len({f["key"] for f in got}) == len(got) >= 5
    for figure in got:
        assert figure["figure"]["data"] and figure["caption"] and figure["title"]
        assert figure["csv"].count("\n") > 2


def test_decode_orders_under_several_priors(asks, run):
    (one,) = ask(asks, "sigmas", run=run.key)["figures"]
    assert len(one["figure"]["data"]) >= 4
    without = ask(asks, "sigmas", run="x")
    assert "no longer kept" in without["error"]


def test_what_is_exported(asks, run, tmp_path):
    page = ask(asks, "export", run=run.key, what="html")
    assert page["name"].endswith(".html") and "Sort 5 2 9 1." in page["text"]
    view = {"at": 3, "tab": "cache", "see": 1, "clock": "ms", "pos": 9}
    kept = ask(asks, "export", run=run.key, what="html", view=view)
    assert f'"view": {json.dumps(view)}' in kept["text"] and '"view": {}' in page["text"]
    trace = ask(asks, "export", run=run.key, what="trace")
    (tmp_path / "t").write_bytes(base64.b64decode(trace["b64"]))
    np.testing.assert_array_equal(Trace.load(tmp_path / "t").tokens, run.trace.tokens)
    cell = ask(asks, "export", run=run.key, what="notebook")
    assert "Sort 5 2 9 1." in cell["text"] and cell["name"].endswith(".py")


def test_a_text_is_one_token_or_is_refused_with_its_parts(asks, run):
    one = ask(asks, "token", run=run.key, text="7")
    assert run.model.decode([one["id"]]) == one["text"] == "7"
    assert ask(asks, "token", run=run.key, mask=True)["id"] == run.model.config.mask_id
    assert "is 2 tokens ('7' + '7')" in ask(asks, "token", run=run.key, text="77")["error"]


@pytest.mark.parametrize(
    "question",
    [
        "",
        "7",
        "[]",
        "[1, 2]",
        '["attention", 3]',
        '["answer", {}]',
        '["__init__", {}]',
        '["attention", {"run": "b", "step": 0}]',
        '["attention", {"run": 3, "step": 0}]',
        '["attention", {"run": RUN, "step": 999}]',
        '["attention", {"run": RUN, "step": "0"}]',
        '["attention", {"run": RUN, "step": 0, "layer": 8}]',
        '["attention", {"run": RUN, "step": 0, "layer": [1]}]',
        '["attention", {"run": RUN}]',
        '["attention", {"run": RUN, "step": true}]',
        '["life", {"run": RUN, "position": -1}]',
        '["life", {"run": RUN, "position": 1e9}]',
        '["export", {"run": RUN, "what": "../x"}]',
        '["export", {"run": RUN, "what": "html", "view": {"tab": "<b>"}}]',
        '["export", {"run": RUN, "what": "html", "view": {"at": -1}}]',
        '["export", {"run": RUN, "what": "html", "view": {"more": 1}}]',
        '["export", {"run": RUN, "what": "html", "view": [1]}]',
        '["figures", {"run": RUN, "more": 1}]',
        "[" * 1900,
        '["token", {"run": RUN, "text": ""}]',
        '["a"' + " " * 3000 + "]",
        None,
    ],
)
def test_a_wrong_question_gets_one_line_back(asks, run, question):
    answer = asks.answer(question and question.replace("RUN", json.dumps(run.key)))
    assert set(answer) == {"error"} and answer["error"] and "\n" not in answer["error"]


def test_a_loaded_trace_is_answered_by_the_model_that_made_it(asks, run):
    asks.boards.stored.append(Board("s", runs=[Run("s", name="d2", trace=run.trace)]))
    got = ask(asks, "attention", run="s", step=0)
    assert got["n"] == run.trace.tokens.shape[1]
    other = d2cache.Trace(**vars(run.trace))
    named = {"model": "elsewhere", "shape": {**other.run["shape"], "name": "elsewhere"}}
    other.header = other.header | {"run": other.run | named}
    asks.boards.stored.append(Board("o", runs=[Run("o", name="d2", trace=other)]))
    assert "needs the model elsewhere" in ask(asks, "attention", run="o", step=0)["error"]
