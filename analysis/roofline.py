"""Roofline of a measured table: python -m analysis.roofline BENCH.json [--out roofline]

BENCH.json is the output of `python -m analysis.bench --shape ... --json`; its last line is used.
Writes OUT.html, which opens without a network, and OUT.png; the PNG needs `pip install kaleido`
and a Chromium.

Each point is the median step of one policy: on the x axis floating-point operations per byte of
weights, keys and values that must be read, on the y axis operations per second. Under the slanted
line the chip waits for memory, under the level one for its matrix units; both are limits measured
in the same run as the points (Williams, Waterman and Patterson, CACM 52(4), 2009).
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analysis.figures import INK, TEMPLATE
from d2cache import command, output_file

COLOURS = [
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#b2a300",
    "#332288",
    "#882255",
]
KEYS = {"policy", "length", "batch", "flops", "bytes", "median_ms"}


def read(text: str) -> dict:
    """The measurement in the output of bench; ValueError if there is none."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    try:
        found = json.loads(lines[-1])
        points = found["results"]
        if not points or not all(KEYS <= set(point) for point in points):
            raise KeyError("results")
        return found
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            "no measurement in the file; make one with "
            "python -m analysis.bench --shape llada-8b --json"
        ) from error


def points(found: dict) -> pd.DataFrame:
    """policy, length, batch, intensity in FLOP per byte, rate in FLOP/s, limit there in FLOP/s."""
    frame = pd.DataFrame(found["results"])
    frame["intensity"] = frame["flops"] / frame["bytes"]
    frame["rate"] = frame["flops"] / (frame["median_ms"] / 1e3)
    slope = found["copy_gb_s"] * 1e9 * frame["intensity"]
    frame["limit"] = slope.clip(upper=found["matrix_gflop_s"] * 1e9)
    return frame


def figure(found: dict) -> go.Figure:
    """The roofline, both axes logarithmic."""
    frame = points(found)
    made = go.Figure()
    _add_limits(made, found, frame)
    for policy, rows in frame.groupby("policy", sort=False):
        _add_points(made, policy, rows)
    made.update_layout(
        template=TEMPLATE,
        height=520,
        width=900,
        paper_bgcolor="white",
        plot_bgcolor="white",
        colorway=COLOURS,
        title=", ".join(
            found[k] for k in ("shape", "dtype", "weights", "machine", "date") if found.get(k)
        ),
        legend={"orientation": "v", "x": 1.02, "y": 1},
        font_color="#333",
    )
    decades = {"type": "log", "dtick": 1, "minor": {"dtick": "D2", "showgrid": True}}
    made.update_xaxes(title="FLOP per byte of weights, keys and values read", **decades)
    made.update_yaxes(title="TFLOP/s", **decades)
    return made


def _add_limits(made: go.Figure, found: dict, frame: pd.DataFrame) -> None:
    """The slanted line and the level line, a little wider than the points."""
    copy, matrix = found["copy_gb_s"] * 1e9, found["matrix_gflop_s"] * 1e9
    ridge = matrix / copy
    left = min(frame["intensity"].min(), ridge) / 2
    right = max(frame["intensity"].max(), ridge) * 2
    made.add_scatter(
        x=[left, ridge, right],
        y=[left * copy / 1e12, matrix / 1e12, matrix / 1e12],
        mode="lines",
        line={"color": INK, "width": 2},
        hoverinfo="skip",
        name=f"limits: {copy / 1e9:.0f} GB/s, {matrix / 1e12:.3g} TFLOP/s",
    )


def _add_points(made: go.Figure, policy: str, rows: pd.DataFrame) -> None:
    made.add_scatter(
        x=rows["intensity"],
        y=rows["rate"] / 1e12,
        name=policy,
        mode="markers",
        marker={"size": 9},
        customdata=rows[["length", "batch", "median_ms"]].assign(
            share=100 * rows["rate"] / rows["limit"]
        ),
        hovertemplate="%{fullData.name}, T = %{customdata[0]}, batch %{customdata[1]}<br>"
        "%{customdata[2]:.2f} ms per step, %{customdata[3]:.0f} % of the limit<extra></extra>",
    )


def write_picture(made: go.Figure, path: Path) -> int:
    """The PNG; returns the command's exit code."""
    try:
        import kaleido  # noqa: F401  what plotly draws pictures with
    except ImportError:
        print("roofline: no PNG without kaleido: pip install kaleido", file=sys.stderr)
        return 1
    try:
        made.write_image(path, scale=2)
    except Exception as error:  # of a browser that kaleido starts: it may be missing or fail
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"roofline: no PNG: {reason}", file=sys.stderr)
        return 1
    print(path)
    return 0


def parse(argv=None) -> Namespace:
    parser = command.Parser(
        prog="python -m analysis.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measured", type=Path, metavar="BENCH.json")
    parser.add_argument(
        "--out", type=Path, default=Path("roofline"), help="path without .html or .png"
    )
    return parser.parse_args(argv)


def write(args: Namespace) -> int:
    """Page and picture; returns the command's exit code."""
    page, picture = (Path(f"{args.out}{end}") for end in (".html", ".png"))
    for path, what in ((page, "the page"), (picture, "the picture")):
        output_file.check(path, what)
    try:
        made = figure(read(args.measured.read_text("utf-8")))
    except ValueError as error:
        raise ValueError(f"{args.measured}: {error}") from error
    output_file.write(page, made.to_html().encode())
    print(page, flush=True)
    return write_picture(made, picture)


def main(argv=None) -> int:
    """Exit codes as of `d2cache.command.guarded`, and 1 where only the picture is missing."""
    return command.guarded("roofline", lambda: write(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
