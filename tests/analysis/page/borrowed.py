"""A page that borrows its GPU through the real package `spaces`: python -m borrowed

A process of its own, since `spaces` looks at the environment when it is imported, changes torch,
and forks what imports it. Prints what happened as one line of JSON; `test_zero.py` says what
should. There need be no CUDA: this process never has any, and its workers, which are not given a
GPU here, compute on the CPU. Everything else of `spaces` is what runs on a Space.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
from scheduler import Scheduler

SCHEDULER = Scheduler("GPU-of-a-test")
os.environ |= {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": SCHEDULER.address}
# what `spaces` looks at, and a torch without CUDA lacks
torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = "13.0", None, bool
import spaces  # noqa: E402
from spaces.zero import torch as gpu  # noqa: E402

gpu.init = gpu.move = lambda *_, **__: None  # how a worker gets its GPU, and what is to be there

import app  # noqa: E402
from analysis import probes  # noqa: E402
from analysis.page import zero  # noqa: E402
from analysis.page.boards import advance  # noqa: E402
from analysis.page.host import Host  # noqa: E402
from analysis.page.models import offered_models  # noqa: E402
from analysis.page.query import Asked, Lane  # noqa: E402
from d2cache.bundled import ASSETS  # noqa: E402

LANES = (Lane("none"), Lane("d2"))
PROMPT = "Sort 5 2 9 1."


def asked(model="far", **more) -> Asked:
    return Asked(PROMPT, LANES, model, **({"gen_length": 16} | more))


def told(board, most=None) -> list[dict]:
    return [event for events in advance(board, most) for event in events]


def steps(board) -> list[int]:
    """How many steps of each lane are on the stage."""
    return [0 if (trace := run.snapshot()) is None else len(trace.seconds) for run in board.runs]


def same(board, other) -> list[bool]:
    pairs = zip(board.runs, other.runs, strict=True)
    return [bool((a.trace.tokens == b.trace.tokens).all()) for a, b in pairs]


def streamed(host, here) -> dict:
    """A comparison with its truth, whose first step is here before the worker has ended."""
    board, released = host.open_board(asked(truth=True)), len(SCHEDULER.made("/release"))
    parts = advance(board)
    first = next(parts)
    early = len(SCHEDULER.made("/release")) == released
    rest = [event for events in parts for event in events]
    kinds = {event["k"] for event in [*first, *rest]}
    looks = [len(run.looks) == n for run, n in zip(board.runs, steps(board), strict=True)]
    run = host.boards.put("visitor", board).runs[1]
    return {
        "early": early,
        "kinds": sorted(kinds),
        "same": same(board, here),
        "looks": looks,
        "answers": answered(host, run),
        "forked": int(SCHEDULER.made("/allow")[-1]["pid"]) != os.getpid(),
    }


def answered(host, run) -> dict:
    """Whether each question about a run is answered, and a map as it would be here."""
    wanted = {
        "attention": {"step": 2, "layer": 1},
        "life": {"position": 5},
        "figures": {},
        "sigmas": {},
        "token": {"text": "5"},
    }
    out = {}
    for name, given in wanted.items():
        out[name] = "error" not in host.questions.answer(
            json.dumps([name, {"run": run.key} | given])
        )
    there = host.far.analyse("attention", "far", run.trace, 2, 1)
    here = probes.attention_map(host.models.get("tiny"), run.trace, 2, 1)
    return out | {"as here": bool(abs(there - here).max() < 1e-6)}


def paused(host, here) -> dict:
    """Pause holds the clock while the worker goes on to its end; step and play move it."""
    board, released = host.open_board(asked()), len(SCHEDULER.made("/release"))
    told(board, most=2)
    before = steps(board)
    ended = SCHEDULER.wait("/release", released + 1)
    told(board, most=1)
    after = steps(board)
    told(board)
    return {"before": before, "ended": ended, "after": after, "same": same(board, here)}


def added(host) -> dict:
    """A what-if and another lane are calls of their own."""
    board, calls = host.open_board(asked()), len(SCHEDULER.made("/schedule"))
    told(board)
    branch = {"lane": 0, "step": 3, "says": "as before"}
    board.start(Lane("prefix"), host.models.get("far"), branch)
    start = next(event for event in told(board) if event["k"] == "start")
    return {
        "calls": len(SCHEDULER.made("/schedule")) - calls,
        "start": {name: start[name] for name in ("lane", "branch", "board")},
        "board": board.key,
        "ended": [run.trace is not None for run in board.runs],
    }


def dropped(host) -> dict:
    """A closed tab ends the work in the worker, long before its last step."""
    board = host.open_board(asked(gen_length=256, truth=True, full=True))
    released = len(SCHEDULER.made("/release"))
    parts = advance(board)
    next(parts)
    parts.close()
    board.forget()
    began = time.perf_counter()
    ended = SCHEDULER.wait("/release", released + 1)
    worker = SCHEDULER.made("/allow")[-1]["pid"]
    return {
        "ended": ended,
        "seconds": time.perf_counter() - began,
        "seconds of a run": 256 * sum(host.far.pace.rate("far", p, True) for p in ("none", "d2")),
        "alive": Path(f"/proc/{worker}").exists(),
    }


def refused(host) -> dict:
    """What a visitor is told while the scheduler lends nothing, and when a worker is killed."""
    out = {}
    for mood in ("spent", "busy"):
        SCHEDULER.mood = mood
        board = host.open_board(asked())
        told(board)
        out[mood] = [run.error for run in board.runs]
        run = host.boards.of("visitor").runs[1]
        question = json.dumps(["attention", {"run": run.key, "step": 2}])
        out[f"{mood}, asked"] = host.questions.answer(question).get("error")
    SCHEDULER.mood = "lends"
    board = host.open_board(asked(gen_length=64))
    told(board, most=2)
    os.kill(int(SCHEDULER.made("/allow")[-1]["pid"]), signal.SIGKILL)
    told(board)
    out["killed"] = [run.error for run in board.runs]
    out["kept"] = steps(board)
    told(local := host.open_board(asked("tiny")))
    out["local"] = [run.error for run in local.runs]
    told(again := host.open_board(asked()))
    out["again"] = [run.error for run in again.runs]
    return out


def served(host) -> dict:
    """The page's own endpoint, to a client whose token the scheduler gets."""
    from gradio_client import Client

    calls = len(SCHEDULER.made("/schedule"))
    page = app.build(host)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    client = Client(url, headers={"x-ip-token": "a.visitor.token"}, verbose=False)
    given = {"prompt": PROMPT, "gen_length": 16, "model": "far", "api_name": "/run"}
    found = client.predict(**given)
    SCHEDULER.mood = "spent"
    try:
        client.predict(**given)
    except Exception as error:  # Gradio's own
        said = str(error)
    SCHEDULER.mood = "lends"
    page.close()
    return {
        "text": found["text"],
        "spent": said,
        "tokens": [call.get("token") for call in SCHEDULER.made("/schedule")[calls:]],
        "reports": len(SCHEDULER.made("/startup-report")),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ASSETS / "tiny", Path(folder) / "far")
        host = Host({"tiny": "tiny", "far": str(copy)}, borrow=zero.borrow())
        host.models.start("far")
        list(host.models.watch("far"))
        here = host.open_board(asked("tiny"))
        told(here)
        out = {
            "real": spaces.GPU is zero.borrow() and torch.cuda.is_available(),  # as it seems
            "offered": list(offered_models(None)),
            "streamed": streamed(host, here),
            "paused": paused(host, here),
            "added": added(host),
            "served": served(host),
            "text here": here.runs[1].outcome,
            "dropped": dropped(host),
            "refused": refused(host),
            "durations": [int(call["durationSeconds"]) for call in SCHEDULER.made("/schedule")],
        }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
