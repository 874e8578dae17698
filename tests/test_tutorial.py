"""The tutorial notebook runs from top to bottom, and is stored without outputs."""

import ast
import json
from pathlib import Path

import pytest

import d2cache

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def execute(source: str, names: dict) -> object:
    """Run a cell as a notebook does; -> the value of the expression that it ends with."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook's names and what its cells show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        names: dict = {"__name__": "__main__"}
        shown = [execute(source, names) for source in CODE]
    yield names, shown
    del d2cache.CachePolicy.registry["masks"]


def test_the_tutorial_compares_caches_and_takes_numbers_out(executed):
    names, shown = executed
    none, d2, masks = (names[name].totals for name in ("none", "d2", "masks"))
    assert none["hit_rate"] == 0 < masks["hit_rate"] < 1 and 0 < d2["hit_rate"] < 1
    assert names["masks"].run["policy_knobs"]["refresh_every"] == 8
    frames = [value for value in shown if hasattr(value, "columns")]
    assert len(frames) == 3 and not any(frame.empty for frame in frames)
    assert sum(isinstance(value, d2cache.Trace) for value in shown) == 1
    assert shown[-1] is True


def test_it_is_stored_without_outputs():
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
