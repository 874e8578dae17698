"""A run to take along, as one HTML file that plays it.

python -m analysis.export run.safetensors [more.safetensors] -o page.html   several: side by side
python -m analysis.export --bundled -o index.html                           the stored runs
python -m analysis.export --lessons -o lessons.html                         the lessons
"""

from __future__ import annotations

import sys
from argparse import Namespace

from analysis.page.export import bundled_page, lanes, lessons_page, page, prompt_of
from d2cache import Trace, command, output_file


def parse(argv=None) -> Namespace:
    parser = command.Parser(
        prog="python -m analysis.export", description="One HTML file that plays runs, offline."
    )
    parser.add_argument("traces", nargs="*", help="trace files; several are lanes of one board")
    parser.add_argument("-o", "--out", required=True, help="the file to write")
    parser.add_argument("--title", default=None, help="default: the first run's prompt")
    parser.add_argument("--bundled", action="store_true", help="the stored runs, with a choice")
    parser.add_argument("--lessons", action="store_true", help="the lessons with their runs")
    args = parser.parse_args(argv)
    if [args.bundled, args.lessons, bool(args.traces)].count(True) != 1:
        raise ValueError("give trace files, or one of --bundled and --lessons, and not both")
    if not args.traces and args.title is not None:
        raise ValueError("--title is for trace files; other pages have their own")
    return args


def write(args: Namespace) -> None:
    output_file.check(args.out, "the page")
    if args.bundled or args.lessons:
        text = bundled_page() if args.bundled else lessons_page()
    else:
        traces = [Trace.load(file) for file in args.traces]
        text = page(lanes(traces), args.title or prompt_of(traces[0])[:120])
    data = text.encode()
    output_file.write(args.out, data)
    print(f"{args.out}: {len(data) / 1e3:.0f} kB")


def main(argv=None) -> int:
    """Exit codes as of `d2cache.command.guarded`."""
    return command.guarded("export", lambda: write(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
