"""What README, CONTRIBUTING and docs say is true."""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import d2cache
from analysis.page import lessons
from analysis.page.query import Lane
from d2cache.__main__ import main, parse
from d2cache.registry import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
FILES = sorted(
    path
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "*.md"), (ROOT / "assets/tiny", "*.md"))
    for path in folder.glob(pattern)
)


def commands(text: str) -> list[str]:
    """The Python commands in the text's code, those joined by && separately."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
    lines = [line for lang, code in fence.findall(text) if not lang for line in code.splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", fence.sub("", text))]
    return [one.strip() for line in lines for one in line.split("&&") if "python " in one]


@pytest.fixture
def example(tmp_path):
    """The README's policy, imported from a file of its own as a newcomer would add it."""
    code = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "key=" in b)
    path = tmp_path / "masks_from_readme.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield "masks"
    del d2cache.CachePolicy.registry["masks"], sys.modules[path.stem]


def test_the_example_policy_is_a_cache_known_everywhere(example):
    assert example in [p["name"] for p in d2cache.policies()]
    assert parse(["run", "x", "--policy", "masks", "--refresh-every", "4"]).refresh_every == 4
    model = d2cache.load("tiny", device="cpu")
    ids = model.encode("Compute 3 + 4 * 5.")

    def record(policy):
        return d2cache.Trace.record(d2cache.generate(model, ids, policy, gen_length=32))

    exact, none = record(d2cache.make_policy("masks", refresh_every=1)), record("none")
    assert np.array_equal(exact.confidence, none.confidence)
    cached = record("masks")
    assert 0 < cached.totals["hit_rate"] and not np.allclose(cached.confidence, none.confidence)


@pytest.mark.parametrize("base", [d2cache.CachePolicy, d2cache.Decoder])
def test_the_tables_of_methods_are_those_of_the_registries(base):
    """`python -m d2cache methods` prints what to put here."""
    assert table(base, "what it does") in DOCS["methods"]
    listed = next(
        line
        for line in README.replace("\n  ", " ").splitlines()
        if line.startswith({"policy": "- Cache policies:", "decoder": "- Decoders:"}[base.kind])
    )
    assert set(re.findall(r"`(\w+)`", listed)) == set(base.registry)


def test_the_methods_command_prints_them(capsys):
    assert main(["methods"]) == 0
    assert all(line in DOCS["methods"] for line in capsys.readouterr().out.splitlines())


def test_requirements_are_pinned_inside_the_ranges_of_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    for line in (ROOT / "requirements.txt").read_text().split():
        name, version = line.split("==")
        low = re.search(rf'"{name}>=([\d.]+)', project)
        assert low and tuple(map(int, version.split("."))) >= tuple(map(int, low[1].split(".")))
    pinned = re.search(r"gradio==([0-9.]+)", (ROOT / "requirements.txt").read_text())[1]
    assert f"sdk_version: {pinned}" in README


def test_the_example_lesson_and_the_example_lanes_are_valid(tmp_path):
    folder = tmp_path / "lessons"
    shutil.copytree(ROOT / "assets" / "lessons", folder)
    example = next(
        b for b in DOCS["lessons"].split("```") if b.startswith("\n# ") and "@until" in b
    )
    (folder / "9-mine.md").write_text(example.lstrip(), encoding="utf-8")
    added = lessons.lessons(folder)[-1]
    assert added["title"] == "How far does one word reach?" and len(added["cards"]) == 2
    for lane in re.search(r"lanes=\[(.*?)\]", README)[1].split('"')[1::2]:
        assert str(Lane.parse(lane)) == lane


def test_the_measured_table_is_the_one_in_the_picture():
    stored = (ROOT / "assets/measured/llada-8b-h200.txt").read_text("utf-8").splitlines()
    command = "analysis.bench --shape llada-8b --device cuda --steps 16 --json"
    first, other = DOCS["measured"].split(command)[1].split("```")[:3:2]
    shown = [line for line in (first + other).splitlines() if line]
    assert all(line in stored for line in shown)
    measured = {line for line in stored if len(line.split()) > 8 and not line.startswith("{")}
    assert measured == {line for line in shown if len(line.split()) > 8}


def test_the_figures_of_the_readme_are_in_the_measured_tables():
    sentence = re.search(r"Per step, d2 takes .*?LLaDA-8B\.", README, re.S)[0]
    figures = re.findall(r"\d+\.\d+", sentence)
    assert len(figures) == 4
    assert all(re.search(rf"\s{figure}\s", DOCS["measured"]) for figure in figures)


def test_the_python_of_the_readme_runs():
    code = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "load(" in b)
    names = {}
    exec(code, names)
    trace = names["trace"]
    assert trace.recomputed.shape == trace.why.shape and "hit_rate" in trace.totals


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_commands_to_modules(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for command in commands(text):
        words = shlex.split(command[command.index("python ") :], comments=True)
        if words[1] != "-m":
            assert (ROOT / words[1]).is_file(), command
        elif words[2] == "d2cache" and len(words) > 4:
            parse(words[3:])
        else:
            assert importlib.util.find_spec(words[2]), command
