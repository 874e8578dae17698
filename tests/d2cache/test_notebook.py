"""Traces and steps as values: text, HTML, equality, pickles; and progress where it is wanted."""

import copy
import html
import io
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from lab import random_prompt, small_model

import d2cache
from d2cache import companion, progress

MODEL = small_model()


def recorded(policy="d2", **settings):
    steps = d2cache.generate(MODEL, random_prompt(6), policy, gen_length=8, **settings)
    return d2cache.Trace.record(steps)


def test_a_trace_is_equal_to_itself_on_disk_in_a_pickle_and_as_a_copy(tmp_path):
    for policy in ("d2", "elastic"):  # without parts, and with them
        trace = recorded(policy)
        trace.save(tmp_path / "t")
        for same in (
            d2cache.Trace.load(tmp_path / "t"),
            pickle.loads(pickle.dumps(trace)),
            copy.deepcopy(trace),
        ):
            assert same == trace


@pytest.mark.parametrize("name", ["tokens", "confidence", "seconds", "parts", "header"])
def test_traces_that_differ_in_anything_are_not_equal(name):
    trace = recorded("elastic")
    other = copy.deepcopy(trace)
    if name == "header":
        other.header["run"]["seeds"] = [5]
    else:
        array = getattr(other, name)
        array.flat[-1] = 0 if array.flat[-1] else 1
    assert other != trace and trace != other
    other.parts = None
    assert other != trace and trace != 1


def test_text_is_short_and_says_what_it_is():
    trace = recorded()
    assert re.fullmatch(
        r"<Trace of small, d2 \+ confidence: 6 \+ 8 positions, 8 steps in \d+\.\d\d s, "
        r"\d+\.\d % of rows reused>",
        repr(trace),
    )
    batch = d2cache.Trace.record(d2cache.generate(MODEL, [[1, 2], [3, 4]], "none", gen_length=4))
    assert "2 rows of 2 + 4 positions" in repr(batch) and len(repr(batch)) < 150
    step = next(d2cache.generate(MODEL, random_prompt(6), "none", gen_length=8))
    assert repr(step) == (
        "<Step 0 of none + confidence: 1 x 14 positions, 14 recomputed, 1 written>"
    )
    assert repr(step.after) == "<Canvas before step 1: 1 x 14 positions, 7 masked>"
    assert step != next(d2cache.generate(MODEL, random_prompt(6), "none", gen_length=8))


def test_a_notebook_shows_the_stage_in_a_frame_of_its_own(monkeypatch):
    trace = recorded()
    shown = trace._repr_html_()
    page = html.unescape(re.fullmatch(r'<iframe srcdoc="([^"]*)" .*></iframe>', shown, re.S)[1])
    assert 'id="stage"' in page and "Content-Security-Policy" in page
    # its scripts run, and reach neither the notebook nor what it has stored
    assert re.search(r'sandbox="([^"]*)"', shown)[1].split() == ["allow-scripts", "allow-downloads"]
    batch = d2cache.Trace.record(d2cache.generate(MODEL, [[1], [2]], "none", gen_length=2))
    assert batch._repr_html_() is None
    monkeypatch.setattr(companion, "BESIDE", companion.BESIDE / "elsewhere")
    assert trace._repr_html_() is None  # the analysis that is found is not that of this package


def test_the_engine_imports_no_companion():
    program = "import d2cache, sys; print({'analysis', 'app', 'gradio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"
    assert companion.companion("nowhere:x") is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("out", [Terminal, io.StringIO])
@pytest.mark.parametrize("err", [Terminal, io.StringIO])
def test_progress_is_shown_where_both_streams_are_a_terminal(monkeypatch, out, err):
    monkeypatch.setattr(sys, "stdout", out())
    monkeypatch.setattr(sys, "stderr", err())
    assert progress.wanted() == (out is err is Terminal)
    assert progress.wanted(True) and not progress.wanted(False)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", SimpleNamespace())
    assert progress.wanted()


def test_a_long_run_shows_the_tokens_written_so_far(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)

    def shown(asked):
        text = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", text)
            steps = d2cache.generate(MODEL, random_prompt(6), "prefix", gen_length=8)
            trace = d2cache.Trace.record(steps, progress=asked)
        assert len(trace.seconds) == 8
        return text.getvalue()

    assert re.findall(r"(\d)/8", shown(True))[1:] == list("2345678")
    assert "prefix" in shown(True) and not shown(False)
    assert not shown(None)  # stdout is captured here; and a short run has no bar anywhere


def test_a_bar_looks_at_the_tensors_only_when_it_is_drawn(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    looks = []
    with progress.Bar("x", 1000, asked=True) as bar:
        for i in range(1000):
            bar.show(lambda i=i: looks.append(i) or i)
    assert 1 <= len(looks) < 100
    with progress.Bar("x", 1000, asked=False) as bar:
        bar.show(lambda: looks.append("never"))
    assert "never" not in looks
