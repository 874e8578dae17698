"""A GPU that is borrowed call by call: with the real package `spaces`, which forks, against a
stand-in for the scheduler; and what needs no fork in this process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import d2cache
from analysis.page import zero
from analysis.page.host import Host
from analysis.page.outline import Outline
from analysis.page.query import Asked, Lane
from analysis.page.session import Sessions
from analysis.page.worker import Analysis, Lanes
from analysis.page.zero import Pace, in_words
from d2cache import Edit
from d2cache.bundled import ASSETS

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def in_a_process(script: str, *arguments: str, **environment: str) -> dict:
    """The JSON that a script of this folder prints, among lines of `spaces`."""
    carried = filter(None, [os.environ.get("PYTHONPATH")])  # where a machine has its packages
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *carried])
    child = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=os.environ | {"PYTHONPATH": paths, "GRADIO_ANALYTICS_ENABLED": "False"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    (found,) = (line for line in child.stdout.splitlines() if line.startswith("{"))
    return json.loads(found)


# ------------------------------------------------------------------------------ forked


@pytest.fixture(scope="module")
def seen():
    return in_a_process("borrowed.py")


def test_lanes_stream_out_of_a_forked_process_token_for_token(seen):
    got = seen["streamed"]
    assert seen["real"] and got["forked"] and len(seen["offered"]) > 1
    assert got["early"], "the first step was seen after the worker had ended"
    assert all(got["same"]) and all(got["looks"])
    assert {"start", "rec", "truth", "end"} <= set(got["kinds"])


def test_every_question_is_answered_where_the_model_is(seen):
    assert all(seen["streamed"]["answers"].values()), seen["streamed"]["answers"]


def test_pause_and_step_move_the_clock_over_a_run_that_has_ended_elsewhere(seen):
    got = seen["paused"]
    assert got["ended"] and got["before"] == [2, 2] and got["after"] == [3, 3]
    assert all(got["same"])


def test_a_what_if_is_a_call_of_its_own_with_its_place_on_the_board(seen):
    got = seen["added"]
    assert got["calls"] == 2 and all(got["ended"])
    branch = {"lane": 0, "step": 3, "says": "as before"}
    assert got["start"] == {"lane": 2, "branch": branch, "board": got["board"]}


def test_the_pages_endpoint_asks_with_the_visitors_token(seen):
    got = seen["served"]
    assert got["text"] == seen["text here"] and got["reports"] == 1
    assert got["tokens"] == ["a.visitor.token"] * 2
    assert got["spent"].count("spent, and there is more in 1:02:00; stored runs") == 1


def test_a_closed_tab_ends_the_work_early_and_leaves_the_worker(seen):
    got = seen["dropped"]
    assert got["ended"] and got["alive"] and got["seconds"] < got["seconds of a run"] / 4


def test_each_refusal_is_one_sentence_and_the_bundled_model_goes_on(seen):
    got = seen["refused"]
    for mood, words in {
        "spent": "the GPU quota for today is spent",
        "busy": "no GPU was free within a minute",
        "killed": "its GPU was taken back before the end",
    }.items():
        assert {error.startswith(words) for error in got[mood]} == {True}, got[mood]
        assert all(error.endswith(zero.STILL) and "\n" not in error for error in got[mood])
    assert got["spent, asked"] == got["spent"][0] and got["busy, asked"] == got["busy"][0]
    assert got["kept"] == [2, 2], "what had arrived before the worker was killed is lost"
    assert got["local"] == ["", ""] and got["again"] == ["", ""]


# ------------------------------------------------------------------------------ in this process


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Borrows from itself: as `spaces.GPU` does where there is no ZeroGPU."""
    copy = tmp_path_factory.mktemp("models") / "far"
    shutil.copytree(ASSETS / "tiny", copy)
    host = Host({"tiny": "tiny", "far": str(copy)}, borrow=lambda duration: lambda task: task)
    host.models.start("far")
    list(host.models.watch("far"))
    return host


def test_a_package_without_a_zero_gpu_is_left_alone():
    for value in ("", "false", "0"):
        assert zero.borrow({"SPACES_ZERO_GPU": value}) is None
    assert zero.borrow({}) is None


def test_only_the_bundled_model_has_weights_here(host):
    far, tiny = (host.models.get(label) for label in ("far", "tiny"))
    assert isinstance(far, Outline) and all(p.is_meta for p in far.parameters())
    assert not isinstance(tiny, Outline) and tiny.device.type == "cpu"
    assert far.encode("Sort 5 2.").tolist() == tiny.encode("Sort 5 2.").tolist()


@pytest.mark.parametrize(
    "lane, words",
    [
        (Lane(edits=(Edit(3, tokens={5000: 3}),)), "position"),
        (Lane("d2", {}, edits=(Edit(3, policy={"nothing": 3}),)), "nothing"),
    ],
)
def test_what_is_wrong_with_a_lane_is_found_without_a_gpu(host, lane, words):
    with pytest.raises(ValueError, match=words):
        host.open_board(Asked("Sort 5 2 9 1.", (lane,), "far", gen_length=16))
    assert not host.far.pace.step


def test_the_clock_is_explained_once_and_a_stopped_run_keeps_what_was_shown(host):
    from test_session import usual

    sessions = Sessions(host)
    controls = usual(model="far", policy="none", gen_length=24)
    said = []
    for _ in range(2):
        session = sessions.of("visitor")
        run = session.run(controls)
        for change in run:
            said.append(change.get("said", ("",))[0])
            if session.board and session.board.runs[0].written >= 3:
                session.board.stopped = True
        assert session.board.runs[0].trace is not None and not session.board.running
    assert len([text for text in said if zero.CLOCK in text]) == 2  # while asking, and running
    assert said[0].startswith(zero.ASKING) and said[1].startswith("Running.")
    assert len(sessions.of("visitor").board.runs[0].trace.seconds) < 24
    sessions.leave("visitor")


def test_a_recorder_elsewhere_makes_the_same_trace(host):
    model = host.models.get("tiny")
    one, other = d2cache.trace.Recorder(), d2cache.trace.Recorder()
    for step in d2cache.generate(model, model.encode("Sort 5 2 9 1."), "dllm", gen_length=16):
        one.add(step)
        other.receive(one.parcel(), model.tokenizer)
    assert other.trace() == one.trace() and other.trace().header == one.trace().header
    with pytest.raises(ValueError, match="no step"):
        d2cache.trace.Recorder().parcel()


# ------------------------------------------------------------------------------ time and words


def lanes(masks: int, *policies: str, truth=False) -> Lanes:
    asked = Asked("x", tuple(map(Lane, policies)), "far", masks, truth=truth)
    return Lanes(asked, policies)


def test_the_time_asked_for_follows_from_what_was_measured():
    pace = Pace()
    pace.loaded("far", 8.0)
    pace.loaded("far", 0.0)  # a later call that found it loaded
    for _ in range(3):
        pace.stepped(lanes(64, "none"), "none", 0.05)
        pace.stepped(lanes(64, "none", truth=True), "none", 0.1)
    assert pace.seconds(lanes(200, "none")) == zero.MARGIN * (8 + 200 * 0.05)
    assert pace.seconds(lanes(200, "none", truth=True)) == zero.MARGIN * (8 + 200 * 0.1)
    unknown = zero.MARGIN * (8 + 100 * (0.05 + zero.FIRST_STEP))
    assert pace.seconds(lanes(100, "none", "d2")) == pytest.approx(unknown, abs=1)
    assert Pace().seconds(lanes(16, "none")) >= zero.FIRST_LOADING
    assert pace.seconds(lanes(256, *["none"] * 6)) == zero.MOST
    assert pace.seconds(Analysis("far", "attention", b"", 1)) == pytest.approx(12.1, abs=1)
    once, four = (pace.seconds(Analysis("far", n, b"", 200)) for n in ("life", "orders"))
    assert once - 12 == pytest.approx((four - 12) / 4, abs=1)


class Gradios(Exception):
    def __init__(self, title: str, message: str):
        self.title, self.message = title, message


@pytest.mark.parametrize(
    "error, words",
    [
        (Gradios("ZeroGPU quota exceeded", "No GPU was available after 60s. Try"), "no GPU was"),
        (Gradios("ZeroGPU client error", "No GPU was available"), "no GPU was free"),
        (Gradios("ZeroGPU pending credits exceeded", "You have too many"), "quota"),
        (Gradios("ZeroGPU quota exceeded", "You have. Try again in 1 day, 2:03:04. "), "1 day, 2:"),
        (Gradios("ZeroGPU illegal duration", "The requested GPU duration"), "fewer masks"),
        (Gradios("ZeroGPU worker error", "GPU task aborted"), "taken back"),
        (Gradios("ZeroGPU worker error", "AcceleratorError"), "(AcceleratorError)"),
        (RuntimeError("ZeroGPU API /schedule error: 500\nmore"), "schedule error: 500)"),
        (RuntimeError("Connection closed by visitor while queueing"), "page was closed"),
        (TimeoutError(), "no GPU was free"),
    ],
)
def test_each_fault_has_its_words(error, words):
    said = in_words(error)
    assert words in said and "\n" not in said and not said.endswith(".")


# ------------------------------------------------------------------------------ with a GPU


@pytest.mark.gpu
def test_an_8b_model_streams_through_the_border_at_the_speed_of_the_loop(tmp_path):
    found = in_a_process("borrowed_gpu.py", str(tmp_path / "llada"))
    print(json.dumps(found, indent=1))
    assert found["same"] and found["other"] == ""
    assert found["answers"] == [""] * len(found["answers"])
    assert found["steps per second"] >= 0.9 * found["alone, steps per second"]
    assert found["warm"] < found["cold"]
