"""What `pip install .` makes: a command, a page and a bundled model that need no clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import d2cache

ROOT = Path(__file__).parent.parent
FOR_DEVELOPERS = {"pictures", "measured"}  # assets that the page does not show

# In one process, since torch takes seconds to import: the installed command, then the page.
USE = """
import runpy, sys
sys.argv = ["d2cache", "run", "Compute 3 + 4.", "--gen-length", "16", "--json", "--trace", "run"]
try:
    runpy.run_path(sys.prefix_bin + "/d2cache", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0, stop.code
import d2cache
trace = d2cache.Trace.load("run")
assert "<iframe" in trace._repr_html_()
import app
page = app.build(app.Host({"tiny": "tiny"}))
print(d2cache.__version__, d2cache.__file__, app.__file__, len(page.fns) > 10, sep="\\n")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The package, installed from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("package")
    source, target = folder / "source", folder / "site"
    for name in ("d2cache", "analysis", "assets"):
        skipped = shutil.ignore_patterns("__pycache__", *FOR_DEVELOPERS)
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("app.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_an_installed_package_has_everything_that_is_read_at_run_time(site):
    for folder in ("d2cache", "analysis"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cu", ".typed") and "tools" not in path.parts:
                assert (site / path.relative_to(ROOT)).is_file(), path
    for path in (ROOT / "assets").rglob("*"):
        if path.is_file() and path.relative_to(ROOT / "assets").parts[0] not in FOR_DEVELOPERS:
            assert (site / "d2cache" / path.relative_to(ROOT)).is_file(), path


def test_it_runs_the_bundled_model_and_builds_the_page_away_from_a_clone(site, tmp_path):
    program = USE.replace("sys.prefix_bin", repr(str(site / "bin")))
    away = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=away,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, run, version, package, page, built = done.stdout.splitlines()
    assert json.loads(run)["model"] == "tiny" and json.loads(run)["text"]
    assert version == d2cache.__version__ and built == "True"
    assert Path(package).parent.parent == Path(page).parent == site
