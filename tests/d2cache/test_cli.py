"""The command line: exit codes, one-line errors, JSON at the end, knobs as flags."""

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab import small_model

import d2cache
from analysis.page.query import Asked, Lane
from d2cache import weights
from d2cache.__main__ import main
from d2cache.trace import agreement

ROOT = Path(__file__).parents[2]
FILL = "--no-stop-at-eos"
KEYS = {
    "text",
    "answer_tokens",
    "steps",
    "seconds",
    "tokens_per_second",
    "hit_rate",
    "flops",
    "flops_vs_none",
    "model",
    "policy",
    "decoder",
    "device",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random checkpoint with its own tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("cli") / "small"
    weights.save(small_model(60), folder, torch.float32)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def cli(model, capsys, monkeypatch):
    """Calls main: exit code, lines of stdout, stderr. `cli.runs`: the Run object of each run."""
    runs, generate = [], d2cache.generate

    def watched(*args, **kwargs):
        for step in generate(*args, **kwargs):
            if step.index == 0:
                runs.append(step.run)
            yield step

    def call(command, *args, prompt="w1 w2 w3", folder=model):
        where = ["--model", folder] if folder else []
        capsys.readouterr()
        code = main([command, prompt, "--gen-length", "8", "--device", "cpu", *where, *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out.splitlines(), err

    monkeypatch.setattr(d2cache, "generate", watched)
    call.runs = runs
    return call


def test_run_ends_with_one_line_of_json(cli):
    code, lines, err = cli("run", "--policy", "d2", "--current-k", "2", "--json", FILL)
    got = json.loads(lines[-1])
    assert code == 0 and err == "" and set(got) == KEYS
    assert got["steps"] == 8 and got["policy"] == "d2" and got["decoder"] == "confidence"
    assert got["model"] == "small" and got["device"] == "cpu"
    assert 0 < got["hit_rate"] < 1 and 0 < got["flops_vs_none"] < 1
    assert got["answer_tokens"] <= 8 and got["flops"] > 0 and got["seconds"] > 0
    assert abs(got["tokens_per_second"] - got["answer_tokens"] / got["seconds"]) < 1e-6
    assert lines[0] == got["text"] and all(w[0] == "w" for w in got["text"].split())


def test_run_without_json_ends_with_a_sentence(cli):
    code, lines, _ = cli("run", "--policy", "none", FILL)
    assert code == 0 and lines[-1].startswith("none + confidence: 8 steps in ")
    assert "0.0 % of rows reused" in lines[-1] and "1.00 of the FLOPs" in lines[-1]


def test_8_bit_weights_show_in_json_and_trace(cli, tmp_path):
    file = str(tmp_path / "run.safetensors")
    code, lines, err = cli("run", "--weights", "fp8", "--json", "--trace", file)
    got = json.loads(lines[-1])
    assert (code, err) == (0, "") and set(got) == KEYS | {"weights"} and got["weights"] == "fp8"
    assert d2cache.Trace.load(file).run["weights"] == "fp8"
    code, lines, _ = cli("compare", "--weights", "fp8", "--policies", "none,d2", "--json")
    assert code == 0 and [json.loads(line)["weights"] for line in lines] == ["fp8", "fp8"]
    code, _, _ = cli("run", "--trace", file)
    assert code == 0 and "weights" not in d2cache.Trace.load(file).run


def test_compare_prints_one_line_per_policy(cli):
    code, lines, err = cli("compare", "--policies", "none, d2", "--current-k", "2", "--json")
    got = [json.loads(line) for line in lines]
    assert code == 0 and err == "" and [g["policy"] for g in got] == ["none", "d2"]
    assert all(set(g) == KEYS | {"agreement_vs_none"} for g in got)
    assert got[0]["agreement_vs_none"] == 1.0 and 0 <= got[1]["agreement_vs_none"] <= 1
    assert got[0]["hit_rate"] == 0 < got[1]["hit_rate"]
    code, lines, _ = cli("compare", "--policies", "d2", "--current-k", "1024", "--rollout-p", "1")
    assert code == 0 and "100 % of the answer as without a cache" in lines[-2]


def test_a_trace_is_written_and_loads(cli, tmp_path):
    file = tmp_path / "run.safetensors"
    code, lines, _ = cli("run", "--trace", str(file), "--json", "--block-length", "4")
    trace, got = d2cache.Trace.load(file), json.loads(lines[-1])
    assert code == 0 and trace.run["gen_length"] == 8 and trace.run["block_length"] == 4
    assert trace.prompt_length == 3 and trace.tokens[0, :3].tolist() == [1, 2, 3]
    for key in ("steps", "hit_rate", "flops", "answer_tokens"):
        assert trace.totals[key] == got[key]
    assert trace.text_of(5) in ("w5", "<5>")


def test_an_interrupted_run_leaves_its_trace_and_exit_code_130(cli, tmp_path, monkeypatch):
    file, whole = tmp_path / "part.safetensors", d2cache.generate

    def interrupted(*args, **kwargs):
        for step in whole(*args, **kwargs):
            yield step
            if step.index == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(d2cache, "generate", interrupted)
    code, lines, err = cli("run", "--trace", str(file), "--json")
    assert code == 130 and err == "d2cache: interrupted\n"
    assert d2cache.Trace.load(file).totals["steps"] == 3
    assert json.loads(lines[-1])["steps"] == 3 and lines[0] == json.loads(lines[-1])["text"]


@pytest.mark.parametrize(
    ("flags", "policy", "decoder"),
    [
        (["--sigma", "4"], {"sigma": 4.0}, {"sigma": 4.0}),
        (["--policy-sigma", "4"], {"sigma": 4.0}, {"sigma": 10.0}),
        (["--decoder-sigma", "0"], {"sigma": 10.0}, {"sigma": 0.0}),
        (["--sigma", "4", "--decoder-sigma", "2"], {"sigma": 4.0}, {"sigma": 2.0}),
        # each owner's bounds: policy d2 has 0.1 to 100, decoder adaptive 1 to 40
        (["--sigma", "0"], {"sigma": 10.0}, {"sigma": 0.0}),
        (["--decoder", "adaptive", "--sigma", "50"], {"sigma": 50.0}, {"sigma": 10.0}),
        (
            ["--policy", "elastic", "--decoder", "eb", "--gamma", "5"],
            {"gamma": 0.9},
            {"gamma": 5.0},
        ),
        (["--as-shipped"], {"as_shipped": True}, {"as_shipped": True}),
        (["--policy-as-shipped"], {"as_shipped": True}, {"as_shipped": False}),
        (["--as-shipped", "--no-decoder-as-shipped"], {"as_shipped": True}, {"as_shipped": False}),
        (["--current-k", "7", "--rollout-p", "0"], {"current_k": 7, "rollout_p": 0.0}, {}),
        (["--temperature", "0.5", "--top-p", "0.9"], {}, {"temperature": 0.5, "top_p": 0.9}),
        (["--decoder", "threshold", "--threshold", "0.2"], {}, {"threshold": 0.2}),
        (["--tokens-per-step", "3"], {}, {"tokens_per_step": 3}),
    ],
)
def test_every_knob_is_a_flag_and_shared_knobs_can_be_set_separately(cli, flags, policy, decoder):
    code, _, err = cli("run", *flags)
    assert (code, err) == (0, "")
    (run,) = cli.runs
    assert policy.items() <= run.policy_knobs.items()
    assert decoder.items() <= run.decoder_knobs.items()


def test_length_blocks_seed_and_end_reach_the_loop(cli):
    code, _, _ = cli("run", "--block-length", "4", "--seed", "9", FILL)
    (run,) = cli.runs
    assert code == 0 and (run.gen_length, run.block_length) == (8, 4)
    assert run.seeds == (9,) and run.stop_at_eos is False


def test_a_run_stops_at_the_end_token_as_on_the_page(cli):
    for flags, stops in (([], True), (["--stop-at-eos"], True), ([FILL], False)):
        cli.runs.clear()
        assert cli("run", *flags)[0] == cli("compare", *flags)[0] == 0
        assert {run.stop_at_eos for run in cli.runs} == {stops}
    asked = Asked("x", (Lane(),))
    assert not asked.full  # a page that does not ask for all masks stops, too


BAD = {
    "unknown policy": (["run", "--policy", "d3"], "unknown policy 'd3'; choose one of"),
    "unknown decoder": (["run", "--decoder", "x"], "unknown decoder 'x'; choose one of"),
    "one unknown of two": (["compare", "--policies", "none,d3"], "unknown policy 'd3'"),
    "unknown decoder compared": (["compare", "--decoder", "x"], "unknown decoder 'x'"),
    "out of bounds": (["run", "--current-k", "0"], "current_k is 0; it must be a whole number"),
    "not a number": (["run", "--rollout-p", "nan"], "--rollout-p is 'nan'; it must be a number"),
    "knob of another policy": (
        ["run", "--policy", "none", "--current-k", "3"],
        "--current-k is a knob of policy 'd2', which is not chosen here",
    ),
    "shared knob of another policy": (
        ["run", "--policy", "none", "--policy-sigma", "3"],
        "--policy-sigma is a knob of policy 'd2', which is not chosen here",
    ),
    "knob of another decoder": (
        ["run", "--threshold", "0.5"],
        "or decoder 'threshold', which is not chosen here",
    ),
    "knob of no compared policy": (["compare", "--policies", "none", "--current-k", "3"], "'d2'"),
    "nowhere allowed": (["run", "--sigma", "200"], "policy 'd2': sigma is 200.0; it must be"),
    "allowed by none that is left": (
        ["run", "--sigma", "0", "--decoder-sigma", "2"],
        "policy 'd2': sigma is 0.0; it must be",
    ),
    "no answer": (["run", "--gen-length", "0"], "--gen-length is 0; it must be a whole number"),
    "no block": (["run", "--block-length", "0"], "--block-length is 0"),
    "too long": (["run", "--gen-length", "9999"], "small has room for 256: shorten one of them"),
    "seed below 0": (["run", "--seed", "-1"], "--seed is -1; it must be a whole number"),
    "device": (["run", "--device", "tpu"], "unknown device 'tpu'; use auto, cpu or cuda"),
    "weights": (["run", "--weights", "int4"], "--weights: invalid choice: 'int4'"),
    "trace a device": (["run", "--trace", "/dev/null"], "cannot write the trace to '/dev/null'"),
    "long name": (["run", "--trace", "x" * 300], "File name too long"),
    "trace nowhere": (["run", "--trace", "/nowhere/x/y"], "cannot write the trace to '/nowhere"),
    "trace a folder": (["run", "--trace", "/"], "cannot write the trace to '/'"),
    "no policies": (["compare", "--policies", ","], "--policies"),
    "letters for a number": (["run", "--gen-length", "many"], "--gen-length is 'many'; it must be"),
    "half a number": (["run", "--current-k", "1.5"], "--current-k is '1.5'; it must be a whole"),
    "unknown flag": (["run", "--speed", "9"], "--speed"),
    "a flag's other spelling": (["run", "--gen-lenght", "9"], "did you mean --gen-length?"),
    "two prompts": (["run", "more"], "unrecognized arguments: more"),
    "switch with a value": (["run", "--as-shipped=3"], "--as-shipped"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_2(cli, kind):
    (command, *args), says = BAD[kind]
    code, out, err = cli(command, *args)
    assert code == 2 and says in err and not out
    assert err.startswith("d2cache: ") and err.count("\n") == 1


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_is_refused(cli, prompt):
    code, _, err = cli("run", prompt=prompt)
    assert code == 2 and err == "d2cache: the prompt is empty; give a question in quotes\n"


@pytest.mark.parametrize("argv", [[], ["walk"], ["run"], ["--json"]])
def test_an_invalid_command_line_is_refused(argv, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("d2cache: ") and err.count("\n") == 1


def test_a_model_that_is_not_there_is_refused(cli, tmp_path):
    code, _, err = cli("run", folder=str(tmp_path / "none"))
    assert code == 2 and "no model folder at" in err and err.count("\n") == 1
    code, _, err = cli("run", folder=str(tmp_path))
    assert code == 2 and "has no config.json" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "compare"])
def test_help_lists_every_knob(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no line is broken
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for entry in [*d2cache.policies(), *d2cache.decoders()]:
        assert entry["name"] in text
        for one in entry["knobs"]:
            lines = [line for line in text.splitlines() if f"  --{flag_of(one.name)}" in line]
            assert lines, one.name
            if one.low is not None:
                assert f"{one.low:g} to {one.high:g}, default {one.default:g}" in lines[0]
    assert "policy d2: 0.1 to 100" in text and "--decoder-sigma X" in text


def flag_of(knob):
    return knob.replace("_", "-")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"d2cache {d2cache.__version__}\n"


def test_a_closed_pipe_is_not_an_error():
    command = [sys.executable, "-m", "d2cache", "methods"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # long before the first line is written
    assert process.stderr.read() == "" and process.wait() == 0


def test_the_type_of_the_weights_can_be_chosen(cli, tmp_path):
    file = tmp_path / "run.safetensors"
    code, _, _ = cli("run", "--dtype", "bfloat16", "--trace", str(file))
    assert code == 0 and d2cache.Trace.load(file).run["dtype"] == "bfloat16"
    code, _, err = cli("run", "--dtype", "int8")
    assert code == 2 and "bfloat16" in err


def test_edits_change_the_run_and_are_in_its_trace(cli, tmp_path):
    file = tmp_path / "run.safetensors"
    edits = ["--edit", "2,3=7,refresh=all", "--edit=4,5=59"]
    code, _, _ = cli("run", FILL, *edits, "--trace", str(file))
    assert code == 0 and [str(e) for e in cli.runs[0].edits] == ["2,3=7,refresh=all", "4,5=59"]
    trace = d2cache.Trace.load(file)
    assert trace.tokens[3, 3] == 7 and trace.tokens[5, 5] == 59
    assert [e["step"] for e in trace.run["edits"]] == [2, 4]
    for bad, says in (
        ("x", "step of an edit is 'x'"),
        ("1,99=1", "names position 99"),
        ("1,2", "its form: STEP"),
        ("1,policy.kr=2", "policy 'd2' has no knob 'kr'"),
    ):
        code, out, err = cli("run", "--edit", bad)
        assert code == 2 and not out and says in err and err.count("\n") == 1


def test_a_dash_reads_the_question_from_standard_input(cli, monkeypatch, tmp_path):
    file = tmp_path / "question"
    file.write_text("w4 w5\n")
    with file.open() as given:
        monkeypatch.setattr(sys, "stdin", given)
        assert cli("run", "--trace", str(tmp_path / "t"), prompt="-")[0] == 0
    trace = d2cache.Trace.load(tmp_path / "t")
    assert trace.tokens[0, : trace.prompt_length].tolist() == [4, 5]
    for given, says in (
        (None, "standard input is closed"),
        (io.StringIO(" "), "prompt is empty"),
        (io.TextIOWrapper(io.BytesIO(b"w\xff"), "utf-8"), "standard input is not text in utf-8"),
    ):
        monkeypatch.setattr(sys, "stdin", given)
        code, out, err = cli("run", prompt="-")
        assert code == 2 and not out and says in err and err.count("\n") == 1


def test_a_trace_is_written_through_a_link_with_the_mode_of_the_umask(cli, tmp_path):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    before = os.umask(0o027)
    try:
        assert cli("run", "--trace", str(link))[0] == 0
    finally:
        os.umask(before)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    target.chmod(0o600)
    assert cli("run", "--trace", str(link))[0] == 0
    assert target.stat().st_mode & 0o777 == 0o600 and d2cache.Trace.load(link).run
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda p: os.symlink("/dev/null", p)])
def test_what_is_no_file_is_refused_before_the_run_and_left_alone(cli, tmp_path, make):
    place = tmp_path / "place"
    make(place)
    before = place.lstat()
    code, out, err = cli("run", "--trace", str(place))
    assert code == 2 and not out and not cli.runs and err.count("\n") == 1
    after = place.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_full_disk_is_told_before_the_run_where_it_can_be(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    code, out, err = cli("run", "--trace", str(tmp_path / "t"))
    assert code == 2 and not out and "No space left" in err and not cli.runs


def test_the_answer_is_printed_and_an_older_trace_kept_when_writing_fails(
    cli, tmp_path, monkeypatch
):
    file = tmp_path / "t"
    assert cli("run", "--trace", str(file))[0] == 0
    older = file.read_bytes()
    answer = cli("run")[1][0]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    code, lines, err = cli("run", "--trace", str(file), "--seed", "1")
    assert code == 2 and lines[0] == answer and file.read_bytes() == older
    assert err == f"d2cache: cannot write the trace to {str(file)!r}: No space left on device\n"
    assert list(tmp_path.iterdir()) == [file]


@contextlib.contextmanager
def stdout_to(monkeypatch, path, **how):
    """A file in the place of stdout."""
    with open(path, "w", **how) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield


def test_letters_that_the_terminal_lacks_are_replaced(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(d2cache.Model, "decode", lambda *_: "caf\u00e9 \u4e2d")
    with stdout_to(monkeypatch, tmp_path / "out", encoding="ascii"):
        code = cli("run")[0]
    assert code == 0 and (tmp_path / "out").read_text().startswith("caf? ?\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_the_trace_is_kept(
    cli, tmp_path, monkeypatch
):
    with stdout_to(monkeypatch, "/dev/full"):
        code, _, err = cli("run", "--trace", str(tmp_path / "t"))
    assert code == 2 and err == "d2cache: cannot write the output: No space left on device\n"
    assert d2cache.Trace.load(tmp_path / "t").run["model"] == "small"
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["methods"]) == 2


def test_agreement_is_about_the_answer_and_not_what_follows_its_end():
    def trace(*answer):
        run = {"prompt_length": 2, "shape": {"eos_id": 9}}
        tokens, filled = np.array([[0, 0, *answer]]), np.ones(len(answer), dtype=bool)
        return SimpleNamespace(run=run, prompt_length=2, tokens=tokens, filled=filled)

    assert agreement(trace(1, 2, 9, 5), trace(1, 2, 9, 6)) == 1
    assert agreement(trace(1, 2, 9, 5), trace(1, 3, 4, 9)) == 1 / 3
    assert agreement(trace(1, 2), trace(1, 3)) == 0.5
    assert agreement(trace(9, 2), trace(9, 3)) == 1
