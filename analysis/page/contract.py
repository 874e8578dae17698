"""The contract between the package and the page's scripts: values that both sides must share.

python -m analysis.page.contract     writes assets/stage/contract.js

Each value is defined once, in the Python module that owns it; the scripts import it from the file
that is written here. The file is committed, and a test writes it again and compares.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys

from analysis.page import analyses, bundle, lessons, planes, query, questions
from d2cache import Part, Why, command, edits

FILE = bundle.STAGE / "contract.js"
COMMAND = "python -m analysis.page.contract"
WIDTH = 100  # columns of a line, as the formatter of the scripts has it


def values() -> dict[str, dict | list | tuple | int | str]:
    """Name of a constant of the scripts -> its value."""
    return {
        # what a step did, as bits
        "WHY": {name: int(bit) for name, bit in Why.__members__.items()},
        "PART": {name: int(bit) for name, bit in Part.__members__.items()},
        # bytes of the planes
        "LAST_CODE": planes.LAST,
        "CONFIDENCE": dataclasses.asdict(planes.CONFIDENCE),
        "DENSITY": dataclasses.asdict(planes.DENSITY),
        "ROLLOUT": dataclasses.asdict(planes.ROLLOUT),
        "DRIFT": dataclasses.asdict(planes.DRIFT),
        "DIVERGENCE": dataclasses.asdict(planes.DIVERGENCE),
        "MAP_ROOT": planes.MAP_ROOT,
        # words and marks of the address
        "RUN_WORDS": _itself(query.RUN_WORDS),
        "VIEW_WORDS": _itself((*query.VIEW, query.MAP)),
        "LANE_MARKS": {
            "edit": query.EDIT_MARK,
            "decoder": query.DECODER_MARK,
            "knob": query.KNOB_MARK,
        },
        "EDIT": {
            "refresh": edits.REFRESH,
            "all": edits.ALL,
            "owners": edits.OWNERS,
            "next": edits.NEXT,
            "is": edits.IS,
            "dot": edits.DOT,
        },
        "TAB_KEYS": query.TABS,
        "CLOCKS": query.CLOCKS,
        "MOST_LANES": query.MOST_LANES,
        # questions of the stage to the server
        "QUESTIONS": _itself(questions.QUESTIONS),
        "EXPORTS": _itself(questions.EXPORTS),
        "SIGMAS": [int(s) if s == int(s) else s for s in analyses.SIGMAS],
        # what lessons may name
        "LESSON_NAMES": [*lessons.NUMBERS, *lessons.WORDS],
        "OPERATORS": lessons.OPERATORS,
        "POINTS": _itself(lessons.POINTS),
        "DATA_TAG": bundle.DATA_TAG,
    }


def script() -> str:
    """The text of contract.js, laid out as the formatter of the scripts leaves it."""
    all_values = values()
    constants = "".join(f"const {n} = {_written(v, n)};\n" for n, v in all_values.items())
    names = "".join(f"  {name},\n" for name in all_values)
    return (
        "/* What the stage shares with the package. Generated: change a value where Python has\n"
        f" * it, then run {COMMAND}. */\n\n"
        f"{constants}\nexport {{\n{names}}};\n"
    )


def _itself(names) -> dict[str, str]:
    """Names under themselves, so that a script that misspells one gets undefined."""
    return {name: name for name in names}


def _written(value, name: str = "LESSON_NAMES") -> str:
    """A value as the constant of this name has it."""
    if isinstance(value, dict):
        lines = "".join(f"  {_key(name)}: {_written(one)},\n" for name, one in value.items())
        return f"{{\n{lines}}}"
    if isinstance(value, (list, tuple)):
        items = [_written(one) for one in value]
        line = f"[{', '.join(items)}]"
        fits = len(line) + len(f"const {name} = ;") <= WIDTH
        return line if fits else "[\n" + "".join(f"  {one},\n" for one in items) + "]"
    return json.dumps(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name)


def main(argv: list[str] | None = None) -> int:
    """Writes the file; with --check, exit code 1 where it is not what would be written."""
    return command.guarded("contract", lambda: _write(argv))


def _write(argv: list[str] | None) -> int:
    parser = command.Parser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say if it is stale")
    if parser.parse_args(argv).check:
        if FILE.read_text(encoding="utf-8") != script():
            print(f"{FILE.name} is stale: run {COMMAND}", file=sys.stderr)
            return 1
        return 0
    FILE.write_text(script(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
