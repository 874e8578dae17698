"""DataFrame -> plotly figure. Figures are returned, never shown; none of them sees a Trace."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# What the page shows by the same colours; none of them is the colour of a reason there.
HITS, DENSITY, CONFIDENCE = "#7f93ad", "#378cad", "#8f8452"
STEPS = ["#6a51a3", "#365c8d", "#277f8e", "#1fa187", "#8fce3c"]  # as the decode order, early first
INK = "#7a828e"  # a grey that can be read on white and on black: the page may be either

LABELS = {
    "step": "denoising step, from 1",
    "milliseconds": "milliseconds",
    "hit_rate": "hit rate",
    "position": "answer position",
    "confidence": "confidence",
    "density": "certainty density",
    "distance": "distance to the previous step's writes, in positions",
}
SURE = 0.9  # a guess of this confidence is called sure; the usual threshold of parallel decoding

TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": INK, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False},
        "yaxis": {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 60, "r": 60, "t": 60, "b": 70},
        "colorway": [HITS, DENSITY, CONFIDENCE],
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
        x=steps["step"] + 1, y=steps["hit_rate"], name=LABELS["hit_rate"], line_color=HITS
    )
    figure.add_scatter(
        x=steps["step"] + 1,
        y=steps["milliseconds"],
        name=LABELS["milliseconds"],
        line={"color": INK, "dash": "dot"},
        secondary_y=True,
    )
    figure.update_yaxes(range=[0, 1.02], secondary_y=False)
    figure.update_yaxes(
        title_text=LABELS["milliseconds"],
        rangemode="tozero",
        showgrid=False,
        secondary_y=True,
        tickmode="auto",
    )
    return _titled(figure, "Hit rate and time per step", "step", "hit_rate")


def decode_order(tokens: pd.DataFrame) -> go.Figure:
    """Which position each step wrote; the colour is the confidence of the write."""
    marker = {
        "color": tokens["confidence"],
        "colorscale": "Cividis",
        "cmin": 0,
        "cmax": 1,
        "size": 7,
        "line": {"color": INK, "width": 0.5},
        "colorbar": {"title": LABELS["confidence"]},
    }
    figure = go.Figure(
        go.Scatter(
            x=tokens["step"] + 1,
            y=tokens["position"],
            mode="markers",
            marker=marker,
            customdata=np.stack([tokens["token"], tokens["confidence"]], axis=-1),
            hovertemplate="step %{x}, position %{y}<br>%{customdata[0]} (%{customdata[1]:.3f})"
            "<extra></extra>",
        )
    )
    return _titled(figure, "Decode order", "step", "position")


def write_distance(tokens: pd.DataFrame) -> go.Figure:
    """Distance between consecutive writes: a histogram, and the cumulative share (right axis)."""
    distance = tokens["distance"].dropna().to_numpy()
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    figure.add_histogram(
        x=distance, xbins={"size": 1, "start": 0.5}, name="writes", marker_color=HITS
    )
    ranked = np.sort(distance)
    share = np.arange(1, len(ranked) + 1) / max(1, len(ranked))
    figure.add_scatter(
        x=ranked,
        y=share,
        name="share at or below",
        line={"color": INK, "shape": "hv"},
        secondary_y=True,
    )
    figure.update_yaxes(
        title_text="share", range=[0, 1.02], showgrid=False, secondary_y=True, tickmode="auto"
    )
    figure.update_xaxes(range=[0, max(10.0, *distance) + 1 if len(distance) else 10])
    return _titled(figure, "Distance between consecutive writes", "distance", "writes")


def confidence_over_time(tokens: pd.DataFrame) -> go.Figure:
    """Confidence and certainty density (0 to 1) of each write, at its step."""
    figure = go.Figure()
    for column, colour in (("confidence", CONFIDENCE), ("density", DENSITY)):
        figure.add_scatter(
            x=tokens["step"] + 1,
            y=tokens[column],
            mode="markers+lines",
            name=LABELS[column],
            marker={"size": 5},
            line={"color": colour, "width": 1},
            text=tokens["token"],
        )
    figure.update_yaxes(range=[0, 1.02])
    return _titled(figure, "Confidence and certainty density of each write", "step", "confidence")


def rollout_change(change: np.ndarray, steps: np.ndarray) -> go.Figure:
    """Heat map of change (S,S), the share of attention mass that moved; steps (S,), from 1."""
    figure = go.Figure(
        go.Heatmap(
            z=change,
            x=steps,
            y=steps,
            colorscale="Cividis",
            zmin=0,
            reversescale=True,
            colorbar={"title": "share moved", "tickformat": ".0%"},
            hovertemplate="steps %{y} and %{x}: %{z:.1%} of the mass moved<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
    figure.update_xaxes(constrain="domain")
    _titled(figure, "How far attention moves between two steps", "step", "step")
    return figure.update_layout(height=420)


def tail_confidence(certainty: pd.DataFrame) -> go.Figure:
    """Confidence of each position's best guess, one line per step.

    certainty: step and position (from 1), confidence.
    """
    shown = sorted(certainty["step"].unique())
    dashes = ["solid", "dash", "dot", "dashdot", "longdash"]
    figure = go.Figure()
    for step, colour, dash in zip(shown, STEPS, dashes, strict=False):
        part = certainty[certainty["step"] == step]
        figure.add_scatter(
            x=part["position"],
            y=part["confidence"],
            name=f"step {step}",
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 1.5},
            marker={"size": 4},
            hovertemplate=f"step {step}, position %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    figure.add_hline(y=SURE, line={"color": INK, "dash": "dot", "width": 1})
    figure.update_yaxes(range=[0, 1.02])
    title = "How sure the guesses are early in the run"
    return _titled(figure, title, "position", "confidence of the best guess")


def sure_before_written(sure: pd.DataFrame) -> go.Figure:
    """When each position's guess was first sure, and when it was written.

    sure: position, token, end (whether it is the end token), sure and written (steps from 1).
    """
    figure = go.Figure()
    for ends, colour, symbol in ((False, DENSITY, "circle"), (True, INK, "square")):
        part = sure[sure["end"] == ends]
        kind = "end token" if ends else "other tokens"
        for column, name, look in (
            ("sure", f"{kind}: first sure", f"{symbol}-open"),
            ("written", f"{kind}: written", symbol),
        ):
            figure.add_scatter(
                x=part["position"],
                y=part[column],
                name=name,
                mode="markers",
                text=part["token"],
                marker={"color": colour, "symbol": look, "size": 6},
                hovertemplate=f"position %{{x}}, %{{text}}<br>{name}: step %{{y}}<extra></extra>",
            )
    return _titled(figure, "When a guess is sure, and when it is written", "position", "step")


def decode_orders(tokens: dict[float, pd.DataFrame]) -> go.Figure:
    """Which step wrote which position, one panel per sigma of the certainty prior."""
    names = [f"σ = {sigma:g}" + (" (no prior)" if sigma == 0 else "") for sigma in tokens]
    figure = make_subplots(
        rows=1, cols=len(tokens), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.03
    )
    for i, (name, frame) in enumerate(zip(names, tokens.values(), strict=True), 1):
        figure.add_scatter(
            x=frame["position"],
            y=frame["step"],
            mode="markers",
            name=name,
            row=1,
            col=i,
            marker={"color": DENSITY, "size": 5},
            text=frame["token"],
            showlegend=False,
            hovertemplate=f"{name}: step %{{y}} wrote %{{text}} at %{{x}}<extra></extra>",
        )
    _titled(figure, "Decode order under several widths of the prior", "position", "step")
    return figure.update_xaxes(title_text=LABELS["position"])
