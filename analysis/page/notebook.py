"""Runs in notebooks: a cell that repeats a run, and what a cell shows of a trace."""

from __future__ import annotations

import html

from analysis.page import export
from d2cache import Edit, Trace
from d2cache.prompts import has_gap

HEIGHT = 760  # pixels of the frame: the stage of a short answer, its clock and its tabs


def shown(trace: Trace) -> str:
    """HTML that shows a trace of one row on the stage, for a notebook: `Trace._repr_html_`.

    The exported page in a frame of its own. Its scripts run there, without access to the notebook;
    in the cell itself they would be dropped, or run among the notebook's own.
    """
    page = export.page(export.lanes([trace]), export.prompt_of(trace)[:120])
    return (
        f'<iframe srcdoc="{html.escape(page)}" title="{html.escape(repr(trace))}" '
        'sandbox="allow-scripts allow-downloads" allow="clipboard-write" '
        f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
    )


def cell(trace: Trace, prompt: str | None = None, model: str | None = None) -> str:
    """Python source of a cell that repeats a run, with every setting spelled out.

    prompt: the text that was encoded, perhaps with gaps; without it, the cell has the prompt's ids.
    model: what `d2cache.load` takes; without it, the name in the trace, which of a folder is only
    its last part. Raises ValueError for a batch.
    """
    if trace.batch > 1:
        raise ValueError(
            f"the trace has {trace.batch} rows, a cell makes one: take trace.row(b) of this batch"
        )
    run = trace.run
    ids, gen_length = trace.asked
    if prompt is not None and has_gap(prompt):  # a gap at the end is an answer in the trace
        known, gen_length = f"model.encode_gaps({prompt!r})", 0
    else:
        known = repr(ids.tolist()) if prompt is None else f"model.encode({prompt!r})"
    settings = f"dtype=torch.{run['dtype']}"  # on another device its default may be another
    settings += ", weights='fp8'" if "weights" in run else ""
    lines = ["import torch\n", "import d2cache\n"]
    lines += [f"model = d2cache.load({model or run['model']!r}, {settings})", f"prompt = {known}"]
    for kind in ("policy", "decoder"):
        given = [repr(run[kind]), *(f"{k}={v!r}" for k, v in run[f"{kind}_knobs"].items())]
        lines.append(f"{kind} = d2cache.make_{kind}({', '.join(given)})")
    lines.append("steps = d2cache.generate(\n    model, prompt, policy, decoder,")
    lines.append(
        f"    gen_length={gen_length}, block_length={run['block_length']}, "
        f"seed={run['seeds'][0]}, stop_at_eos={run['stop_at_eos']},"
    )
    edits = [str(Edit.of_plain(one)) for one in run.get("edits", [])]
    if edits:
        parsed = "".join(f"        d2cache.Edit.parse({one!r}),\n" for one in edits)
        lines.append(f"    edits=[\n{parsed}    ],")
    lines += [")", "trace = d2cache.Trace.record(steps)"]
    shown = "answer" if gen_length else "text_ids"
    lines.append(f"print(model.decode(trace.{shown}), trace.totals, sep='\\n')")
    return "\n".join(lines) + "\n"
