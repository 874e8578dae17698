"""The report of how a checkpoint loads, on a small one that is written here."""

import json
import sys

import pytest

from analysis import loading
from d2cache import models
from d2cache.model import CONFIGS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_a_checkpoint_is_written_and_its_loading_measured(tmp_path, capsys):
    folder = tmp_path / "made"
    arguments = [str(folder), "--shape", "tiny", "--device", "cpu", "--json"]
    assert loading.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    count = models.parameters(CONFIGS["tiny"])
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert found["stored_bytes"] == stored and 2 * count < stored < 2.02 * count  # bfloat16
    for way in ("dropped", "kept"):
        assert found[way]["bytes"] == 4 * count  # float32 on a CPU
        # the model itself, and what libraries take
        assert 4 * count <= found[way]["peak_bytes"] < 4 * count + 300e6
    assert loading.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert loading.main([str(folder)]) == 2
    assert "has no config.json" in capsys.readouterr().err
