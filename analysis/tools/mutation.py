"""Mutation score: the share of small faults in the engine's code that its tests notice.

    python -m pip install -r tests/mutation-requirements.txt
    python -m analysis.tools.mutation --sample 150     # of all mutants, drawn with --seed; minutes
    python -m analysis.tools.mutation                  # all of them; hours

mutmut (github.com/boxed/mutmut) changes one operator, number, name, argument or text inside a
function at a time, in a temporary copy of the tree, and runs the tests that reach the function,
quickest first, until one fails. GROUPS lists the test files of the modules. Decorated functions,
class bodies (knobs, CONFIGS), docstrings and annotations are not mutated.

The score is killed / all tried: a mutant that exceeds the time limit counts as killed, one that no
test reaches as survived. Each survivor is printed with its place and its change.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from d2cache import command

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {
    "core": (
        [
            f"d2cache/{name}.py"
            for name in ("ops", "model", "rows", "work", "generate", "edit_runner", "shadow")
        ],
        ["ops", "model", "models", "generate", "edits", "shadow"],
    ),
    "decoders": (["d2cache/decoders/*"], ["decoders", "registry", "model"]),
    "policies": (
        ["d2cache/policies/*"],
        ["policies", "d2", "registry", "model", "generate"],
    ),
}
# too slow: most pairs of a policy and a decoder, and what needs a server
LEFT_OUT = (
    "(batch_mates and not (shifted or sampled)) or every_policy or blocks_are_written "
    "or masks_again or network or download"
)
CONFIG = """
[tool.mutmut]
source_paths = ["d2cache"]
also_copy = ["analysis", "assets"]
only_mutate = {modules}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-k", "not ({left_out})"]
timeout_multiplier = 4.0
timeout_constant = 10.0
"""
ENDS = {0: "survived", 33: "survived", -24: "timeout", -9: "timeout"}  # by exit code of pytest


def mutmut(tree: Path, *arguments):
    """Run one of mutmut's commands in a copy of the tree."""
    # one thread: a forked torch must not wait for the thread pool of its parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def prepare(tree: Path, modules: list[str], tests: list[str]):
    """A copy of the tree with every mutant in it, and which tests reach which function."""
    tree.mkdir()
    for part in ("d2cache", "analysis", "tests", "assets"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    files = [f"tests/d2cache/test_{name}.py" for name in tests]
    config = CONFIG.format(modules=json.dumps(modules), tests=json.dumps(files), left_out=LEFT_OUT)
    (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + config)
    done = mutmut(tree, "run", "no such mutant")  # stops before the first one
    if not (tree / "mutants" / "mutmut-stats.json").exists():
        stop("the tests fail on the unchanged code", done)


def stop(why: str, done):
    """Exit, with the end of mutmut's output."""
    raise SystemExit(f"{why}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def results(tree: Path) -> dict:
    """Mutant -> (file, exit code of its tests or None)."""
    found: dict[str, tuple[str, int | None]] = {}
    for meta in sorted((tree / "mutants" / "d2cache").rglob("*.meta")):
        file = str(meta.relative_to(tree / "mutants")).removesuffix(".meta")
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        found |= {name: (file, code) for name, code in codes.items()}
    return found


def main(argv=None) -> int:
    return command.guarded("mutation", lambda: measure(argv))


def measure(argv) -> None:
    parser = command.Parser(
        prog="python -m analysis.tools.mutation", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--sample", type=command.whole(1), help="how many mutants to try; default all"
    )
    parser.add_argument("--seed", type=command.whole(0), default=0, help="of the random sample")
    parser.add_argument("--jobs", type=command.whole(1), default=os.cpu_count(), help="processes")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees = {name: Path(folder) / name for name in GROUPS}
        list(pool.map(prepare, trees.values(), *zip(*GROUPS.values(), strict=True)))
        names = [(tree, name) for tree in trees.values() for name in results(tree)]
        chosen = random.Random(args.seed).sample(names, min(args.sample or len(names), len(names)))
        print(f"{len(chosen)} of {len(names)} mutants", flush=True)
        wanted = {tree: sorted(n for t, n in chosen if t == tree) for tree in trees.values()}
        share = str(max(1, args.jobs // len(GROUPS)))
        list(pool.map(lambda t: wanted[t] and try_out(t, share, wanted[t]), wanted))
        counts = {}
        for tree, some in wanted.items():
            found = results(tree)
            for name in some:
                file, code = found[name]
                end = ENDS.get(code, "killed")
                counts.setdefault(file, Counter())[end] += 1
                if end == "survived":
                    show(tree, file, name)
    report(counts)


def try_out(tree: Path, processes: str, names: list[str]):
    """Run the tests of the named mutants."""
    done = mutmut(tree, "run", "--max-children", processes, *names)
    if done.returncode or None in (results(tree)[name][1] for name in names):
        stop("mutmut left mutants untried", done)


def show(tree: Path, file: str, name: str):
    """Print a survivor's place and its change."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    of_class, function = re.search(r"x(?:_|ǁ(\w+)ǁ)(\w+)__mutmut_", name).groups()
    body = ast.parse((tree / file).read_text()).body
    if of_class:
        body = next(n.body for n in body if isinstance(n, ast.ClassDef) and n.name == of_class)
    first = next(n.lineno for n in body if getattr(n, "name", None) == function)
    with contextlib.chdir(tree):
        hunk = get_diff_for_mutant(name, path=file).split("\n@@ -", 1)[1]
    start, lines = int(hunk.split(",")[0]), hunk.splitlines()[1:]
    offset = next(i for i, line in enumerate(lines) if line[0] != " ")
    print(f"{file}:{first + start - 1 + offset}", name.rpartition("_")[2])
    print(*(line for line in lines if line[0] != " "), sep="\n")


def report(counts: dict):
    """Print the table of the files and the score."""
    print(f"{'':32}{'mutants':>8}{'killed':>8}{'timeout':>8}{'survived':>9}{'score':>8}")
    counts["all"] = sum(counts.values(), Counter())
    for file, count in counts.items():
        total = count.total()
        score = 1 - count["survived"] / total
        print(
            f"{file:32}{total:8}{count['killed']:8}{count['timeout']:8}{count['survived']:9}"
            f"{score:8.1%}"
        )


if __name__ == "__main__":
    sys.exit(main())
