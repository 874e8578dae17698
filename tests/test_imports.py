"""Imports point one way, nothing executes what a file brings, and a policy is one small file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("d2cache/**/*.py"), *ROOT.glob("analysis/**/*.py"), *ROOT.glob("*.py")])
FORBIDDEN = {
    "d2cache": {"gradio", "plotly", "pandas", "analysis", "app"},
    "analysis": {"app", "gradio"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import would slip past this test"
            names.add(node.module.split(".")[0])
    return names


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at():
    assert len(FILES) > 15 and any(p.parent.name == "policies" for p in FILES)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    wrong = imported(path) & FORBIDDEN.get(package, set())
    assert not wrong, f"{relative(path)} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_executes_what_a_file_brings(path):
    assert not imported(path) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
        if isinstance(node, (ast.keyword, ast.arg)):
            assert node.arg != "trust_remote_code"
        if isinstance(node, ast.Constant):
            assert node.value != "trust_remote_code"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "os.system", "pd.read_pickle")


@pytest.mark.parametrize("kind", ["policies", "decoders"])
def test_each_policy_and_decoder_is_one_small_file_that_names_its_paper(kind):
    files = [
        p for p in (ROOT / "d2cache" / kind).glob("*.py") if p.stem not in ("__init__", "base")
    ]
    assert files
    for path in files:
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) < 80, relative(path)
        keyed = [
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and any(k.arg == "key" for k in node.keywords)
        ]
        assert len(keyed) == 1, f"{relative(path)} should register one class"
        first = (ast.get_docstring(keyed[0]) or "").partition("\n")[0]
        assert re.search(r"arXiv \d{4}\.\d{4,5}", first), f"{relative(path)}: {first!r}"


def test_the_page_is_controls_changes_and_events_and_keeps_nothing():
    source = (ROOT / "app.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
        assert not isinstance(node, ast.Global)
    # what a module keeps between requests would be shared by all visitors
    kept = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in kept:
        calls = [ast.unparse(n.func) for n in ast.walk(node.value) if isinstance(n, ast.Call)]
        assert not {"Host", "Sessions", "list", "dict", "set", "OrderedDict"} & set(calls)
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        changed = re.findall(
            rf"\b{target.id}(?:\[[^\]]*\])? \|?= |\b{target.id}\.(?:append|pop)", source
        )
        assert len(changed) <= 1, target.id


def test_the_public_names_are_there():
    import d2cache

    assert sorted(d2cache.__all__, key=str.lower) == sorted(set(d2cache.__all__), key=str.lower)
    for name in d2cache.__all__:
        assert getattr(d2cache, name) is not None
