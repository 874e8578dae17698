"""The roofline of a table that is measured here and now, on the bundled shape."""

from types import SimpleNamespace

import pytest
import torch

import d2cache
from analysis import bench, metrics, roofline
from analysis.tools import browser
from d2cache.model import CONFIGS
from d2cache.trace import Recorder


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    arguments = "--shape tiny --device cpu --policies none,d2 --lengths 40,56 --batches 1,2"
    with path.open("w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert bench.main([*arguments.split(), "--gen-length", "16", "--json"]) == 0
    return path


def test_flops_and_bytes_of_a_step_are_those_of_the_model(measured):
    found, c = roofline.read(measured.read_text()), CONFIGS["tiny"]
    d, kv = c.width, c.kv_heads * c.head_width
    layer = d * (d + 2 * kv) + d * d + 3 * d * c.mlp + 2 * d
    weights = 4 * (c.layers * layer + d + d * c.vocab)
    assert found["weights_bytes"] == weights
    for r in found["results"]:
        assert r["bytes"] == weights + r["batch"] * r["length"] * 2 * 4 * c.layers * kv
        if r["policy"] == "none":
            # every step reads all rows; of 16 masks one is written a step, the first left out
            rows = c.layers * r["length"]
            products = rows * (layer - 2 * d) + rows * r["length"] * 2 * d
            saved = r["length"] - 1  # layer 0 keeps K and V of tokens that stay
            head = sum(range(1, 16)) / 15 * d * c.vocab
            want = 2 * (products - saved * 2 * d * kv + head) * r["batch"]
            assert r["flops"] == pytest.approx(want, rel=1e-6)
    d2, none = (
        sum(r["flops"] for r in found["results"] if r["policy"] == p) for p in ("d2", "none")
    )
    assert d2 < none


def test_a_policy_with_some_full_passes_is_judged_by_its_median_step():
    """Time and FLOPs of the same step: the mean's FLOPs in the median's time would be a rate that
    no chip has."""
    model = bench.random_model("tiny", [torch.device("cpu")], torch.float32)
    args = SimpleNamespace(steps=None, gen_length=16, block_length=None, eager=True, rollout_p=0.1)
    prompt = torch.randint(0, 1000, (24,), generator=torch.Generator().manual_seed(0))
    recorder = Recorder()
    for step in d2cache.generate(model, prompt, "dllm", gen_length=16):
        recorder.add(step)
    steps = metrics.steps(recorder.trace())["gflops"][1:]
    assert steps.mean() > 1.2 * steps.median()
    found = bench.steps_of(model, "dllm", prompt, args, True)
    assert found["flops"] == pytest.approx(1e9 * steps.median())


def test_a_point_stands_where_its_time_says(measured):
    found = roofline.read(measured.read_text())
    frame, made = roofline.points(found), roofline.figure(found)
    slope, level = found["copy_gb_s"] * 1e9, found["matrix_gflop_s"] * 1e9
    for one in frame.itertuples():
        assert one.rate * one.median_ms / 1e3 == pytest.approx(one.flops)
        assert one.limit == pytest.approx(min(level, slope * one.flops / one.bytes))
    roof, *drawn = made.data
    assert [t.name for t in drawn] == ["none", "d2"]
    assert roof.y[0] / roof.x[0] * 1e12 == pytest.approx(slope)
    assert roof.y[1] == roof.y[2] == pytest.approx(level / 1e12)
    assert roof.x[1] * slope == pytest.approx(level)
    for trace in drawn:
        rows = frame[frame["policy"] == trace.name]
        assert list(trace.x) == list(rows["intensity"])
        assert list(trace.y) == pytest.approx(list(rows["rate"] / 1e12))


def test_page_and_picture_are_written(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", browser.chromium())  # the one that draws the PNG
    assert roofline.main([str(measured), "--out", str(tmp_path / "roof")]) == 0
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "roof.html").read_text("utf-8")
    # it opens without a network
    assert "plotly.js v" in page and "FLOP per byte" in page


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"results": []}', '{"results": [{}]}', "{"])
def test_what_is_no_measurement_is_refused(text, tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(text)
    assert roofline.main([str(path)]) == 2
    assert "python -m analysis.bench --shape" in capsys.readouterr().err
    assert roofline.main([str(tmp_path / "nothing")]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
