"""Imports point one way, nothing executes what a file brings, and a policy is one small file."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
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
    # what a module keeps between two requests would be shared by all visitors
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            made = [ast.unparse(n.func) for n in ast.walk(node.value) if isinstance(n, ast.Call)]
            assert not {"Host", "Sessions", "list", "dict", "set", "OrderedDict"} & set(made)


def test_the_public_names_are_there():
    import d2cache

    assert sorted(d2cache.__all__, key=str.lower) == sorted(set(d2cache.__all__), key=str.lower)
    for name in d2cache.__all__:
        assert getattr(d2cache, name) is not None


def module_of(path: Path, root: Path) -> str:
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removesuffix(".__init__")


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of d2cache and analysis that its file imports, anywhere in it.

    Type-checking imports count, and `import_siblings` imports every file of its package.
    """
    files = {module_of(p, root): p for top in FORBIDDEN for p in root.glob(f"{top}/**/*.py")}
    graph = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= inside & files.keys()
                if inside - files.keys():
                    names.add(node.module)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_siblings":
                names |= {name for name in files if name.rpartition(".")[0] == module}
        graph[module] = names & files.keys()
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle, empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_make_no_circle():
    graph = import_graph(ROOT)
    assert {"d2cache.ops", "d2cache.policies.d2"} <= graph.keys() and any(graph.values())
    assert not circle(graph)


def test_only_the_loop_knows_of_graphs_and_only_graphs_know_of_kernels():
    """So that the engine works without those folders."""
    graph = import_graph(ROOT)
    for name, known_by in {
        "d2cache.graphs": "d2cache.generate",
        "d2cache.kernels": "d2cache.graphs",
    }.items():
        for module, names in graph.items():
            if module.startswith((name, known_by)):
                continue
            assert not any(n == name or n.startswith(f"{name}.") for n in names), module


@pytest.mark.parametrize(
    "planted",
    [
        "from d2cache.b import b",
        "from d2cache import b",
        "import d2cache.b",
        "def late():\n    from d2cache import b",
        "if TYPE_CHECKING:\n    from d2cache.b import b",
        "import_siblings(__name__, __path__)",
    ],
)
def test_a_planted_circle_is_found(tmp_path, planted):
    package = tmp_path / "d2cache"
    for name in ("__init__.py", "b.py", "a/__init__.py", "a/c.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / "b.py").write_text("from d2cache.a import a")
    (package / "a/c.py").write_text("from d2cache.b import b")
    assert not circle(import_graph(tmp_path))
    (package / "a/__init__.py").write_text(planted)
    assert circle(import_graph(tmp_path))
