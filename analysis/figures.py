"""DataFrame -> plotly figure. Figures are returned, never shown; those that draw know no Trace.

`all` and `sigmas` are what the page shows: figures of runs with their captions and data.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import metrics
from d2cache import Trace

BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"  # Okabe-Ito, told apart without colour vision
INK = "#7a828e"  # one grey that reads on white and on black: the page may be either

LABELS = {
    "step": "denoising step, from 1",
    "milliseconds": "milliseconds",
    "hit_rate": "hit rate",
    "position": "answer position",
    "confidence": "confidence",
    "density": "certainty density",
    "distance": "distance to what the step before wrote, in positions",
}
SURE = 0.9  # a guess of this confidence is called sure; the usual threshold of parallel decoding
MOST_STEPS = 128  # a side of the step x step map

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
        x=steps["step"] + 1,
        y=steps["milliseconds"],
        name=LABELS["milliseconds"],
        line={"color": ORANGE, "dash": "dot"},
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
    return _titled(figure, "Hit rate and time of each step", "step", "hit_rate")


def decode_order(tokens: pd.DataFrame) -> go.Figure:
    """Which position each step wrote; colour is the confidence of the write."""
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
    """Distance between consecutive writes: histogram and its cumulative share (right axis)."""
    distance = tokens["distance"].dropna().to_numpy()
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    figure.add_histogram(
        x=distance, xbins={"size": 1, "start": 0.5}, name="writes", marker_color=BLUE
    )
    ranked = np.sort(distance)
    share = np.arange(1, len(ranked) + 1) / max(1, len(ranked))
    figure.add_scatter(
        x=ranked,
        y=share,
        name="share at or below",
        line={"color": ORANGE, "shape": "hv"},
        secondary_y=True,
    )
    figure.update_yaxes(
        title_text="share", range=[0, 1.02], showgrid=False, secondary_y=True, tickmode="auto"
    )
    figure.update_xaxes(range=[0, max(10.0, *distance) + 1 if len(distance) else 10])
    return _titled(figure, "Distance between consecutive writes", "distance", "writes")


def confidence_over_time(tokens: pd.DataFrame) -> go.Figure:
    """Confidence and certainty density (0 to 1) at the moment of each write."""
    figure = go.Figure()
    for column, colour in (("confidence", BLUE), ("density", ORANGE)):
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
    return _titled(figure, "Confidence and density of each write", "step", "confidence")


def rollout_change(change: np.ndarray, steps: np.ndarray) -> go.Figure:
    """change (S,S): share of the attention mass that lies elsewhere; steps (S,), from 1."""
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
    """Confidence of each position's best guess, a line a step; columns of `certainty_of`."""
    shown = sorted(certainty["step"].unique())
    colours = [BLUE, GREEN, "#cc79a7", ORANGE, "#d55e00"]
    dashes = ["solid", "dash", "dot", "dashdot", "longdash"]
    figure = go.Figure()
    for step, colour, dash in zip(shown, colours, dashes, strict=False):
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
    title = "How sure every guess is, early in the run"
    return _titled(figure, title, "position", "confidence of the best guess")


def sure_before_written(sure: pd.DataFrame) -> go.Figure:
    """When each position's guess was first sure, and when it was written; columns of `sure_of`."""
    figure = go.Figure()
    for ends, colour, symbol in ((False, BLUE, "circle"), (True, ORANGE, "square")):
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
    return _titled(figure, "Sure before it is written", "position", "step")


def decode_orders(tokens: dict[float, pd.DataFrame]) -> go.Figure:
    """Which step wrote which position, a panel for each sigma of the certainty prior."""
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
            marker={"color": BLUE, "size": 5},
            text=frame["token"],
            showlegend=False,
            hovertemplate=f"{name}: step %{{y}} wrote %{{text}} at %{{x}}<extra></extra>",
        )
    _titled(figure, "Decode order under several widths of the prior", "position", "step")
    return figure.update_xaxes(title_text=LABELS["position"])


# ------------------------------------------------------------------------------ tables of a run


def certainty_of(trace: Trace) -> pd.DataFrame:
    """step and position (from 1), confidence (NaN where nothing was predicted) at up to five steps
    of the first half of a run."""
    count, length = trace.confidence.shape
    at = np.unique(np.round((count - 1) * np.array([0, 0.05, 0.15, 0.3, 0.5])).astype(int))
    values = np.where(np.isfinite(trace.confidence[at]), trace.confidence[at], np.nan)
    return pd.DataFrame(
        {
            "step": np.repeat(at + 1, length),
            "position": np.tile(np.arange(length) + 1, len(at)),
            "confidence": values.ravel(),
        }
    )


def sure_of(trace: Trace) -> pd.DataFrame:
    """One line a written answer position: position, token, end (whether it is the end token), sure
    (the first step whose guess there had confidence SURE or more, NaN if none), written (the
    step); steps and positions from 1."""
    told = _from_one(metrics.tokens(trace))
    at = told["position"].to_numpy() - 1
    seen = trace.confidence[:, at] >= SURE
    first = np.where(seen.any(0), seen.argmax(0) + 1.0, np.nan)
    ids = trace.tokens[-1, trace.prompt_length + at]
    return pd.DataFrame(
        {
            "position": told["position"],
            "token": told["token"],
            "end": ids == trace.run["shape"]["eos_id"],
            "sure": first,
            "written": told["step"],
        }
    )


def change_of(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """columns (S,T), what each position receives at each step -> change (N,N) and steps (N,) from
    1, every n-th of a long run. change: half the sum of |difference| over the whole sum: the share
    of the mass that lies elsewhere, 0 to 1."""
    every = max(1, -(-len(columns) // MOST_STEPS))
    steps = np.arange(0, len(columns), every)
    part = np.asarray(columns, np.float64)[steps]
    part = part / part.sum(1, keepdims=True)
    change = np.stack([np.abs(part - row).sum(1) / 2 for row in part])
    return change, steps + 1


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV, numbers with at most six significant digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _from_one(frame: pd.DataFrame) -> pd.DataFrame:
    """Steps and positions as the page counts them."""
    counted = [name for name in ("step", "position") if name in frame]
    return frame.assign(**{name: frame[name] + 1 for name in counted})


# ------------------------------------------------------------------------------ what the page shows


def all(trace: Trace, rollouts: np.ndarray | None = None) -> list[dict]:
    """The figures of a run: dicts of key, title, caption (how to read it, and what is so in this
    run), figure (plotly's JSON) and csv (its data; steps and positions from 1).

    rollouts: (S,T) column sums of the exact rollout, as `probes.rollout_columns` makes them;
    without them that figure is left out.
    """
    steps, tokens = metrics.steps(trace), metrics.tokens(trace)
    told = _from_one(tokens)
    certainty, sure = certainty_of(trace), sure_of(trace)
    out = [
        _entry("work", work_per_step(steps), _work_words(steps), _from_one(steps)),
        _entry(
            "order",
            decode_order(tokens.assign(position=told["position"])),
            _order_words(told),
            told,
        ),
        _entry(
            "distance",
            write_distance(tokens),
            _distance_words(tokens),
            told[["step", "position", "distance"]],
        ),
        _entry(
            "confidence",
            confidence_over_time(tokens),
            _confidence_words(told),
            told[["step", "position", "token", "confidence", "density"]],
        ),
        _entry("tail", tail_confidence(certainty), _tail_words(certainty, sure), certainty),
        _entry("sure", sure_before_written(sure), _sure_words(sure), sure),
    ]
    if rollouts is not None:
        change, at = change_of(np.asarray(rollouts))
        table = pd.DataFrame(change, columns=[f"step {s}" for s in at])
        table.insert(0, "step", at)
        out.append(_entry("rollout", rollout_change(change, at), _change_words(change, at), table))
    return out


def sigmas(traces: dict[float, Trace]) -> dict:
    """Decode order of runs that differ in the sigma of the certainty prior alone (0: no prior), as
    one dict like those of `all`."""
    told = {sigma: _from_one(metrics.tokens(trace)) for sigma, trace in traces.items()}
    said = ", ".join(f"{_jump(frame):.1f} at σ = {sigma:g}" for sigma, frame in told.items())
    words = (
        "A straight line upwards is left to right; a cloud is any order. The certainty prior pulls "
        f"towards known text. Positions between two writes, on average: {said}."
    )
    parts = [f[["step", "position", "token"]].assign(sigma=s) for s, f in told.items()]
    return _entry("sigmas", decode_orders(told), words, pd.concat(parts))


def _entry(key: str, figure: go.Figure, caption: str, data: pd.DataFrame) -> dict:
    return {
        "key": key,
        "title": figure.layout.title.text,
        "caption": caption,
        "figure": json.loads(figure.to_json()),
        "csv": csv(data),
    }


def _jump(tokens: pd.DataFrame) -> float:
    """Mean distance between writes; 0 for a run of one step."""
    mean = tokens["distance"].mean()
    return 0.0 if np.isnan(mean) else float(mean)


def _work_words(steps: pd.DataFrame) -> str:
    slow = steps.loc[steps["milliseconds"].idxmax()]
    return (
        "Blue: the share of positions taken from the cache; orange: the time the step took here. "
        f"In this run {steps['hit_rate'].mean():.0%} on average; the slowest step, "
        f"{int(slow['step']) + 1}, took {slow['milliseconds']:.0f} ms."
    )


def _order_words(told: pd.DataFrame) -> str:
    if len(told) < 2 or told["step"].nunique() < 2:
        return "A dot is a write; here all were written in one step."
    rank = float(told["step"].rank().corr(told["position"].rank()))
    lean = (
        "left to right" if rank > 0.7 else "right to left" if rank < -0.7 else "in no one direction"
    )
    return (
        "A dot is a write: when, where, and how sure. A straight line upwards is left to right. "
        f"This run goes {lean} (rank correlation of step and position {rank:.2f})."
    )


def _distance_words(tokens: pd.DataFrame) -> str:
    known = tokens["distance"].dropna()
    if known.empty:
        return "Bars count writes by how far from the last step's they lie; this run has one step."
    return (
        "Bars count writes by how far they lie from what the step before wrote; the line is the "
        f"share up to there. Here {(known <= 10).mean():.0%} lie within 10 positions, "
        f"{(known <= 1).mean():.0%} right beside it."
    )


def _confidence_words(told: pd.DataFrame) -> str:
    low = told.loc[told["confidence"].idxmin()] if told["confidence"].notna().any() else None
    words = "How sure the model was of what it wrote, and how much around it was known by then."
    if low is None:
        return words
    return (
        f"{words} The least sure write was step {int(low['step'])}, position "
        f"{int(low['position'])}, at {low['confidence']:.2f}."
    )


def _tail_words(certainty: pd.DataFrame, sure: pd.DataFrame) -> str:
    first = certainty[certainty["step"] == certainty["step"].min()].dropna()
    half = certainty["position"].max() / 2
    means = [
        first.loc[part, "confidence"].mean()
        for part in (first.position <= half, first.position > half)
    ]
    words = "A line is one step; it breaks where nothing was predicted. Above the dots: sure. "
    if np.isnan(means).any():
        return words + "Far positions were not predicted in the first step."
    return words + (
        f"In the first step the mean is {means[0]:.2f} in the left half of the answer and "
        f"{means[1]:.2f} in the right half, of which hardly anything can be known yet."
    )


def _sure_words(sure: pd.DataFrame) -> str:
    words = f"Open: the first step whose guess had confidence {SURE} or more; full: written. "
    ends = sure[sure["end"]]
    if ends.empty:
        waited = (sure["written"] - sure["sure"]).mean()
        kind = "No end token was written; a token"
    else:
        waited = (ends["written"] - ends["sure"]).mean()
        kind = f"An end token ({len(ends)} of {len(sure)} writes)"
    if np.isnan(waited):
        return words + f"{kind} was never sure before its step."
    return words + (
        f"{kind} waited {waited:.1f} steps on average after its place was sure: early certainty at "
        "the tail is what a certainty prior holds back."
    )


def _change_words(change: np.ndarray, steps: np.ndarray) -> str:
    words = (
        "Dark where two steps look at other places, pale where at the same; by exact passes. "
        "A pale band along the diagonal means that neighbours agree, which is what a cache bets on."
    )
    if len(steps) < 3:
        return words
    near = np.diagonal(change, 1).mean()
    return (
        f"{words} Here {near:.1%} moves between neighbours, {change[0, -1]:.1%} from first to last."
    )
