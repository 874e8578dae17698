"""What is taken along: the page in one file, the notebook cell, the stored runs."""

import base64
import gzip
import html.parser
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import d2cache
from analysis import bench
from analysis import export as command
from analysis.page import bundle, export, lessons, notebook, stored
from analysis.page.events import message, trace_events
from analysis.page.models import Models, offered_models
from analysis.page.query import Asked, Link, name_runs
from analysis.tools.stored_runs import STORIES, answer_is_right
from d2cache.teaching import tasks

ROOT = Path(__file__).resolve().parents[3]

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \u2028 \\u003c"


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def long_runs(model):
    """128 steps over 256 positions, with two policies that send the most a step."""
    ids = bench.prompt_of(model, 128)
    return [
        d2cache.Trace.record(d2cache.generate(model, ids, policy, gen_length=128))
        for policy in ("d2", "dllm")
    ]


class Parsed(html.parser.HTMLParser):
    """The tags of a page with their attributes, and the text that follows right inside each."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data

    def all(self, tag: str) -> list[tuple[dict, str]]:
        pairs = zip(self.tags, self.texts, strict=True)
        return [(attrs, text) for (name, attrs), text in pairs if name == tag]


def told(page: Parsed) -> list[list[dict]]:
    """The events that a page of one board holds, message by message."""
    (lines,) = (text for attrs, text in page.all("script") if "data-runs" in attrs)
    return [json.loads(line)["events"] for line in lines.splitlines()]


def held(page: Parsed) -> dict:
    """The runs that a page of many holds."""
    (packed,) = (text for attrs, text in page.all("script") if attrs.get("id") == "d2-runs")
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.mark.parametrize("count", [1, 2])
def test_a_page_of_128_steps_and_256_positions_is_under_a_megabyte(long_runs, count):
    for trace in long_runs:
        assert trace.tokens.shape == (129, 256)
    lanes = export.lanes(long_runs[:count])
    text = export.page(lanes, "long")
    assert len(text.encode()) < 1e6
    assert told(Parsed(text)) == lanes  # nothing was left out for it


def test_a_page_needs_nothing_from_elsewhere_and_says_so_to_the_browser(long_runs):
    page = Parsed(export.page(export.lanes(long_runs[:1]), "alone"))
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "base", "object")
        assert not {"src", "href", "srcset", "action"} & set(attrs), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)
    for text in [text for _, text in page.all("style")]:
        assert "@import" not in text and not re.search(r"url\((?!['\"]?data:)", text)
    policy = next(a["content"] for a, _ in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]


def test_a_page_runs_the_very_scripts_of_the_live_page_in_their_order(long_runs):
    page = Parsed(export.page(export.lanes(long_runs[:1]), "same"))
    run = [text for attrs, text in page.all("script") if "type" not in attrs]
    assert run == [bundle.scripts(), "D2Stage.play();"]
    sheets = sorted((ROOT / "assets/stage").glob("*.css"))
    assert all(sheet.read_text() in page.all("style")[0][1] for sheet in sheets) and sheets


def test_texts_that_would_end_the_script_stay_text(long_runs, monkeypatch):
    events = export.lanes(long_runs[:1])[0]
    events[0]["prompt"][0] = HOSTILE
    monkeypatch.setattr(export, "glossary", lambda: {"key": HOSTILE})
    text = export.page(events, HOSTILE)
    page = Parsed(text)
    assert told(page)[0][0]["prompt"][0] == HOSTILE
    clean = Parsed(export.page(export.lanes(long_runs[:1]), "plain"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    assert page.all("title")[0][1] == HOSTILE
    options = next(t for a, t in page.all("script") if a.get("id") == bundle.DATA_TAG)
    assert json.loads(options) == {"glossary": {"key": HOSTILE}, "view": {}}


def test_messages_and_events_however_mixed_make_the_same_page(long_runs):
    lanes = export.lanes(long_runs)
    messages = [message(events) for events in lanes]
    flat = [event for events in zip(*lanes, strict=False) for event in events]  # in turns
    flat += [event for events in lanes for event in events if event not in flat]
    flat.append({"k": "link", "query": "lane=d2"})
    for given in (messages, flat):
        assert told(Parsed(export.page(given, "x"))) == lanes


def test_a_file_says_nothing_of_a_live_page_and_waits_for_no_further_step(long_runs):
    events = trace_events(long_runs[0], "key", stored=True)
    half = [*events[:21], {"k": "pause", "run": "key"}]
    [shown] = told(Parsed(export.page(half, "half")))
    assert not shown[0]["stored"] and events[0]["stored"]
    assert shown[1:-1] == events[1:21]
    assert shown[-1]["k"] == "end" and shown[-1]["status"] == "stopped"


def test_lanes_share_a_board_and_are_told_apart_by_their_names(model):
    def run(policy="d2", decoder="confidence", **knobs):
        return d2cache.Trace.record(
            d2cache.generate(
                model, [5, 6, 7], policy, d2cache.make_decoder(decoder, **knobs), gen_length=4
            )
        )

    traces = [run("none"), run(), run(sigma=0.0), run(decoder="margin", sigma=0.0)]
    starts = [events[0] for events in export.lanes(traces)]
    assert {start["board"] for start in starts} == {"file"} and len({s["run"] for s in starts}) == 4
    assert [start["lane"] for start in starts] == [0, 1, 2, 3]
    names = [start["name"] for start in starts]
    assert names == name_runs([trace.run for trace in traces]) and len(set(names)) == 4
    assert "none" in names[0] and "margin" in names[3] and "sigma=0" in names[2]
    assert name_runs([trace.run for trace in traces[:2]]) == ["none", "d2"]
    assert name_runs([traces[1].run, dict(traces[1].run)]) == ["d2 1", "d2 2"]
    own = traces[1].run | {"policy": "mine", "policy_knobs": {"keep": 3}}  # not registered here
    assert name_runs([own, own | {"policy_knobs": {"keep": 4}}]) == ["mine keep=3", "mine keep=4"]
    for wrong in ([], traces[:1] * 7):
        with pytest.raises(ValueError, match="a board holds 1 to 6"):
            export.lanes(wrong)


# ------------------------------------------------------------------------------ notebook


def execute(source: str, monkeypatch, model) -> d2cache.Trace:
    """Run a cell as a notebook does; the model that it loads is already here."""
    loaded = []

    def load(name, **settings):
        loaded.append((name, settings))
        return model

    monkeypatch.setattr(d2cache, "load", load)
    space = {}
    exec(compile(source, "cell", "exec"), space)
    assert loaded == [(model.config.name, {"dtype": model.dtype})]
    return space["trace"]


def same_run(a: d2cache.Trace, b: d2cache.Trace):
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.why, b.why)
    assert a.run == b.run


@pytest.mark.parametrize("with_text", [True, False])
def test_the_notebook_cell_makes_the_run_again(model, monkeypatch, capsys, with_text):
    prompt = tasks.draw("word", random.Random(3), held_out=True).prompt
    trace = d2cache.Trace.record(
        d2cache.generate(
            model,
            model.encode(prompt),
            d2cache.make_policy("d2", current_k=9, rollout_p=0.25),
            d2cache.make_decoder("random", temperature=0.7, top_p=0.8),
            gen_length=48,
            block_length=16,
            seed=7,
            stop_at_eos=True,
        )
    )
    source = notebook.cell(trace, prompt if with_text else None)
    assert (repr(prompt) in source) == with_text
    same_run(execute(source, monkeypatch, model), trace)
    assert model.decode(trace.answer) in capsys.readouterr().out


def test_the_notebook_cell_loads_the_weights_that_the_run_had():
    short = d2cache.load("tiny", device="cpu", weights="fp8")
    trace = d2cache.Trace.record(d2cache.generate(short, [3, 4, 5], "prefix", gen_length=8))
    source = notebook.cell(trace)
    assert "d2cache.load('tiny', dtype=torch.float32, weights='fp8')" in source
    space = {}
    exec(source, space)
    if space["model"].device.type == "cpu":
        same_run(space["trace"], trace)


def test_the_notebook_cell_makes_the_edits_again(model, monkeypatch):
    edits = [
        d2cache.Edit(2, tokens={9: 77}, decoder={"sigma": 2.5}),
        d2cache.Edit(4, refresh=[3, 1], policy={"current_k": 3}),
        d2cache.Edit(5, refresh="all"),
    ]
    prompt = model.encode("Reverse 1, 2, 3.")
    trace = d2cache.Trace.record(d2cache.generate(model, prompt, gen_length=12, edits=edits))
    source = notebook.cell(trace)
    assert source.count("Edit.parse") == 3
    same_run(execute(source, monkeypatch, model), trace)


def test_the_notebook_cell_loads_the_model_itself(model):
    trace = d2cache.Trace.record(d2cache.generate(model, [3, 4, 5], "prefix", gen_length=8))
    space = {}
    exec(notebook.cell(trace), space)
    if space["model"].device.type == "cpu":
        same_run(space["trace"], trace)


def test_the_notebook_cell_of_a_folder_runs_as_pasted(tmp_path, monkeypatch):
    """On the page a folder is known by its name, which loads nothing."""
    folder = tmp_path / "mine"
    shutil.copytree(ROOT / "assets" / "tiny", folder)
    monkeypatch.chdir(tmp_path)
    here = Models(offered_models("./mine,tiny"))
    monkeypatch.chdir(ROOT)
    made = d2cache.load(str(folder), device="cpu", dtype=torch.bfloat16)
    trace = d2cache.Trace.record(d2cache.generate(made, [3, 4, 5], "none", gen_length=4))
    assert trace.run["model"] == "mine"
    space = {}
    exec(notebook.cell(trace, model=str(folder)), space)
    assert space["model"].dtype == torch.bfloat16 and space["trace"].run["model"] == "mine"
    monkeypatch.chdir(tmp_path)
    assert here.source("mine") == str(folder) and here.source("tiny") == "tiny"
    assert here.source("of a loaded trace") == "of a loaded trace"
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert here.source("mine") == "mine"  # visitors of other machines see no paths


def test_a_batch_makes_no_cell(model):
    trace = d2cache.Trace.record(d2cache.generate(model, [[3, 4], [5, 6]], "none", gen_length=4))
    with pytest.raises(ValueError, match=r"2 rows.*trace\.row"):
        notebook.cell(trace)
    notebook.cell(trace.row(1))


# ------------------------------------------------------------------------------ command line


def test_the_command_writes_one_page_of_all_traces(model, tmp_path, capsys):
    files = []
    for policy in ("none", "d2"):
        trace = d2cache.Trace.record(
            d2cache.generate(model, model.encode("A <b>"), policy, gen_length=8)
        )
        files.append(str(tmp_path / f"{policy}.safetensors"))
        trace.save(files[-1])
    out = tmp_path / "page.html"
    assert command.main([*files, "-o", str(out)]) == 0
    page = Parsed(out.read_text())
    assert [events[0]["k"] for events in told(page)] == ["start", "start"]
    assert "A <b>" in page.all("title")[0][1]
    assert "kB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "trace files, or one of --bundled and --lessons"),
        (["a.safetensors", "--bundled"], "not both"),
        (["missing.safetensors"], "no trace file missing.safetensors"),
        (["--bundled", "--title", "x"], "--title is for trace files"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(tmp_path, capsys, arguments, says):
    out = tmp_path / "page.html"
    assert command.main([*arguments, "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not out.exists()


# ------------------------------------------------------------------------------ stored runs


def test_the_stored_runs_are_what_their_table_says():
    files = {file.stem for file in (ROOT / "assets/traces").glob("*.safetensors")}
    assert files == {story.name for story in STORIES} and len(files) >= 6
    for story in STORIES:
        assert 10 < len(story.title) <= 60 and 40 < len(story.words) <= 240
        assert story.words.endswith(".")
    assert len({(s.policy, s.decoder, s.family) for s in STORIES}) >= 6


@pytest.mark.parametrize("story", STORIES, ids=lambda s: s.name)
def test_a_stored_run_is_small_and_of_the_bundled_model_as_it_is(model, story):
    file = ROOT / "assets" / "traces" / f"{story.name}.safetensors"
    assert file.stat().st_size < 200_000
    trace = d2cache.Trace.load(file)
    assert d2cache.ModelConfig(**trace.run["shape"]) == model.config
    assert np.array_equal(
        trace.tokens[0, : trace.prompt_length], model.encode(story.problem.prompt)
    )
    again = story.record(model)
    assert np.array_equal(again.tokens, trace.tokens) and again.run == trace.run
    assert answer_is_right(story, model, trace) == story.right


def check_runs(found: dict, queries):
    """What a file holds is what each query asks for."""
    for query in queries:
        asked = Asked(**Link.parse(query).settings)
        for lane, (key, _) in zip(asked.lanes, found["runs"][query], strict=True):
            start, *rest, end = found["lanes"][key]
            assert start["policy"] == lane.policy and not start["stored"] and end["k"] == "end"
            assert asked.truth == any(event["k"] == "truth" for event in rest)


def test_the_static_page_holds_runs_comparisons_and_lessons_and_is_small(tmp_path):
    out = tmp_path / "index.html"
    assert command.main(["--bundled", "-o", str(out)]) == 0
    assert out.stat().st_size < 1.2e6
    page = Parsed(out.read_text())
    found, guided = held(page), lessons.presets()
    check_runs(found, [stored.OPENING, *lessons.queries(), *(one["query"] for one in guided)])
    for story in STORIES:
        [[key, name]] = found["runs"][f"trace={story.name}"]
        start = found["lanes"][key][0]
        assert (start["policy"], start["decoder"]) == (story.policy, story.decoder)
        assert name == story.policy and not start["stored"]  # no words about a live page
    offered = [attrs for attrs, _ in page.all("option") if "hidden" not in attrs]
    names = ["", *(one["key"] for one in guided), *(story.name for story in STORIES)]
    assert [one["value"] for one in offered] == names
    assert {one["data-query"] for one in offered} | {*lessons.queries()} == {*found["runs"]}
    assert all(len(one["data-words"]) > 40 for one in offered)
    texts = next(t for a, t in page.all("script") if a.get("id") == bundle.DATA_TAG)
    assert json.loads(texts)["lessons"] == lessons.lessons()


def test_the_page_of_lessons_is_small_and_holds_what_every_card_runs(tmp_path):
    out = tmp_path / "lessons.html"
    assert command.main(["--lessons", "-o", str(out)]) == 0
    assert out.stat().st_size < 1e6
    page = Parsed(out.read_text())
    assert set(held(page)["runs"]) == {stored.OPENING, *lessons.queries()}
    check_runs(held(page), held(page)["runs"])
    assert not page.all("option")
    assert command.main(["--lessons", "--bundled", "-o", str(out)]) == 2


def test_stored_runs_by_name():
    assert stored.listed() == {
        s.name: {"title": s.title, "words": s.words, "prompt": s.problem.prompt} for s in STORIES
    }
    assert isinstance(stored.load("d2-word"), d2cache.Trace)
    for wrong in ("d2", "../tiny/frequency"):
        with pytest.raises(ValueError, match=r"choose of d2-word, none-word"):
            stored.load(wrong)


@pytest.mark.parametrize(
    "text, title",
    [
        ("one  two\nthree", "one two three"),
        ("word " * 40, "word " * 3 + "word…"),
        ("unbroken" * 9, "unbrokenunbrokenunb…"),
    ],
)
def test_a_title_is_cut_between_two_words(text, title):
    assert export.shortened(text, 20) == title and len(title) <= 20
