"""A notebook cell that repeats a run."""

from __future__ import annotations

from d2cache import Edit, Trace


def cell(trace: Trace, prompt: str | None = None) -> str:
    """Python source of a cell that repeats a run, with every setting spelled out.

    prompt: the text that was encoded; without it, the cell has the prompt's ids. Raises ValueError
    for a batch.
    """
    if trace.batch > 1:
        raise ValueError(
            f"the trace has {trace.batch} rows, a cell makes one: take trace.row(b) of this batch"
        )
    run = trace.run
    ids = [int(i) for i in trace.tokens[0, : trace.prompt_length]]
    known = f"model.encode({prompt!r})" if prompt is not None else repr(ids)
    dtype = "" if run["dtype"] == "float32" else f", dtype=torch.{run['dtype']}"
    dtype += ", weights='fp8'" if "weights" in run else ""
    lines = ["import torch\n" if "torch" in dtype else None, "import d2cache\n"]
    lines += [f"model = d2cache.load({run['model']!r}{dtype})", f"prompt = {known}"]
    for kind in ("policy", "decoder"):
        given = [repr(run[kind]), *(f"{k}={v!r}" for k, v in run[f"{kind}_knobs"].items())]
        lines.append(f"{kind} = d2cache.make_{kind}({', '.join(given)})")
    lines.append("steps = d2cache.generate(\n    model, prompt, policy, decoder,")
    lines.append(
        f"    gen_length={run['gen_length']}, block_length={run['block_length']}, "
        f"seed={run['seeds'][0]}, stop_at_eos={run['stop_at_eos']},"
    )
    edits = [str(Edit.of_plain(one)) for one in run.get("edits", [])]
    if edits:
        parsed = "".join(f"        d2cache.Edit.parse({one!r}),\n" for one in edits)
        lines.append(f"    edits=[\n{parsed}    ],")
    lines += [")", "trace = d2cache.Trace.record(steps)"]
    lines.append("print(model.decode(trace.answer), trace.totals, sep='\\n')")
    return "\n".join(line for line in lines if line is not None) + "\n"
