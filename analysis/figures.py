"""DataFrame -> plotly figure. Figures are returned, never shown; they know no Trace."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"  # Okabe-Ito, told apart without colour vision
INK = "#7a828e"  # one grey that reads on white and on black: the page may be either

LABELS = {
    "step": "denoising step, from 1", "milliseconds": "milliseconds", "hit_rate": "hit rate",
    "position": "answer position", "confidence": "confidence", "density": "certainty density",
    "distance": "distance to what the step before wrote, in positions",
}  # fmt: skip

TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": INK, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False},
        "yaxis": {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
        "margin": {"l": 60, "r": 60, "t": 60, "b": 70},
        "colorway": [BLUE, ORANGE, GREEN],
        "height": 340,
    }
)


def _titled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    figure.update_layout(template=TEMPLATE, title=title)
    figure.update_layout(xaxis_title=LABELS.get(x, x), yaxis_title=LABELS.get(y, y))
    return figure


def work_per_step(steps: pd.DataFrame) -> go.Figure:
    """Hit rate (left axis, 0 to 1) and milliseconds (right axis) over the steps."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    figure.add_scatter(
        x=steps["step"] + 1, y=steps["hit_rate"], name=LABELS["hit_rate"], line_color=BLUE
    )
    figure.add_scatter(
        x=steps["step"] + 1, y=steps["milliseconds"], name=LABELS["milliseconds"],
        line={"color": ORANGE, "dash": "dot"}, secondary_y=True,
    )  # fmt: skip
    figure.update_yaxes(range=[0, 1.02], secondary_y=False)
    figure.update_yaxes(
        title_text=LABELS["milliseconds"], rangemode="tozero", showgrid=False, secondary_y=True
    )
    return _titled(figure, "Hit rate and time of each step", "step", "hit_rate")


def decode_order(tokens: pd.DataFrame) -> go.Figure:
    """Which position each step wrote; colour is the confidence of the write."""
    marker = {
        "color": tokens["confidence"], "colorscale": "Cividis", "cmin": 0, "cmax": 1, "size": 7,
        "colorbar": {"title": LABELS["confidence"]},
    }  # fmt: skip
    figure = go.Figure(
        go.Scatter(
            x=tokens["step"] + 1, y=tokens["position"], mode="markers", marker=marker,
            customdata=np.stack([tokens["token"], tokens["confidence"]], axis=-1),
            hovertemplate="step %{x}, position %{y}<br>%{customdata[0]} (%{customdata[1]:.3f})"
            "<extra></extra>",
        )
    )  # fmt: skip
    return _titled(figure, "Decode order", "step", "position")


def write_distance(tokens: pd.DataFrame) -> go.Figure:
    """Distance between consecutive writes: histogram and its cumulative share (right axis)."""
    distance = tokens["distance"].dropna().to_numpy()
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    figure.add_histogram(
        x=distance, xbins={"size": 1, "start": 0.5}, name="writes", marker_color=BLUE
    )
    ranked = np.sort(distance)
    share = np.arange(1, len(ranked) + 1) / max(1, len(ranked))
    figure.add_scatter(
        x=ranked, y=share, name="share at or below", line={"color": ORANGE, "shape": "hv"},
        secondary_y=True,
    )  # fmt: skip
    figure.update_yaxes(title_text="share", range=[0, 1.02], showgrid=False, secondary_y=True)
    return _titled(figure, "Distance between consecutive writes", "distance", "writes")


def confidence_over_time(tokens: pd.DataFrame) -> go.Figure:
    """Confidence and certainty density (0 to 1) at the moment of each write."""
    figure = go.Figure()
    for column, colour in (("confidence", BLUE), ("density", ORANGE)):
        figure.add_scatter(
            x=tokens["step"] + 1, y=tokens[column], mode="markers+lines", name=LABELS[column],
            marker={"size": 5}, line={"color": colour, "width": 1}, text=tokens["token"],
        )  # fmt: skip
    figure.update_yaxes(range=[0, 1.02])
    return _titled(figure, "Confidence and density of each write", "step", "confidence")
