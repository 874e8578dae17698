"""The trace file format: its arrays, and the checks that a file passes before it is trusted.

Every function here raises ValueError, KeyError or TypeError for contents that no run could have
written; `Trace.load` turns these into one message about the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from d2cache.canvas import CANDIDATES
from d2cache.edits import MOST_EDITS, Edit
from d2cache.model import ModelConfig

SCHEMA = "d2cache-trace/2"
LARGEST = 1 << 26  # bytes of a header, and of a whole file where strangers send them
LONGEST_TEXT = 256  # characters of a token

# name -> dtype and axes: S steps, C = S + 1 canvases, T positions, G answer positions,
# K candidates, L layers, W counts of work, N predictions, M guesses of all predictions
ARRAYS: dict[str, tuple[type[np.generic], str]] = {
    "tokens": (np.int64, "CT"),
    "step_of_token": (np.int32, "G"),
    "confidence": (np.float32, "SG"),
    "density": (np.float32, "SG"),
    "rollout": (np.float32, "ST"),
    "recomputed": (np.bool_, "ST"),
    "why": (np.uint8, "ST"),
    "parts": (np.uint8, "SLT"),
    "work": (np.int64, "SW"),
    "predicted": (np.int32, "S"),
    "seconds": (np.float64, "S"),
    "candidates": (np.int64, "GK"),
    "candidate_confidence": (np.float32, "GK"),
    "guess_count": (np.uint8, "N"),
    "guess": (np.int32, "M"),
    "guess_share": (np.float16, "M"),
}
GUESSES = ("guess_count", "guess", "guess_share")  # all three or none, as in earlier versions
OPTIONAL = ("parts", *GUESSES)  # parts: of policies that decide layer by layer
# dtypes that a file may use, as safetensors names them -> numpy
STORED = {
    **{f"F{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(np.bool_),
}

RUN_TYPES: dict[str, type] = {
    "model": str,
    "policy": str,
    "policy_knobs": dict,
    "decoder": str,
    "decoder_knobs": dict,
    "prompt_length": int,
    "gen_length": int,
    "block_length": int,
    "seeds": list,
    "stop_at_eos": bool,
    "device": str,
    "dtype": str,
    "shape": dict,
}
Arrays = dict[str, np.ndarray]


def checked_header(header: Any) -> dict[str, Any]:
    """The known keys of a trace's header, once all of them hold what a run writes."""
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise ValueError(f"its schema is {str(found)[:40]!r}; this version reads {SCHEMA!r}")
    _check_run(header["run"])
    texts = header["texts"]
    if not isinstance(texts, dict) or not all(
        isinstance(t, str) and len(t) <= LONGEST_TEXT for t in texts.values()
    ):
        raise ValueError(f"its token texts must be strings of up to {LONGEST_TEXT} characters")
    if header["start"] != [0] or not isinstance(header["environment"], dict):
        raise ValueError("its start or environment is not that of a single row")
    return {name: header[name] for name in ("schema", "run", "start", "environment", "texts")}


def _check_run(run: Any) -> None:
    if not isinstance(run, dict):
        raise ValueError("its run configuration is not an object")
    _check_run_types(run)
    # only where given text follows a mask may a text begin with one
    for name, least in (("prompt_length", 0 if "given" in run else 1), ("gen_length", 1)):
        if run[name] < least:
            raise ValueError(f"{name} is {run[name]}; it must be at least {least}")
    for name in ("policy_knobs", "decoder_knobs"):
        for knob, value in run[name].items():
            if type(value) not in (int, float, bool) or not abs(value) < 1e12:
                raise ValueError(f"knob {knob[:40]!r} is {str(value)[:40]!r}, not a finite number")
    config = ModelConfig(**run["shape"])
    length = run["prompt_length"] + run["gen_length"]
    if length > config.max_length:
        raise ValueError(f"it has {length} positions; the model has room for {config.max_length}")
    if not 1 <= run["block_length"] <= run["gen_length"]:
        raise ValueError(f"block_length is {run['block_length']}, not 1 to {run['gen_length']}")
    _check_given(run)
    edits = run.get("edits", [])
    if type(edits) is not list or len(edits) > MOST_EDITS:
        raise ValueError(f"its edits are not a list of at most {MOST_EDITS}")
    for edit in edits:
        Edit.of_plain(edit).check(run["prompt_length"], length, config)


def _check_given(run: dict[str, Any]) -> None:
    """That the ranges of given text come in order, each with a mask before it."""
    if "given" not in run:
        return
    rows, length = run["given"], run["prompt_length"] + run["gen_length"]
    if type(rows) is not list or len(rows) != 1 or type(rows[0]) is not list or not rows[0]:
        raise ValueError("given is not a list of ranges for one row")
    before = run["prompt_length"]  # the first mask is there
    for one in rows[0]:
        if type(one) is not list or len(one) != 2 or not all(type(at) is int for at in one):
            raise ValueError(f"given has {str(one)[:40]!r}, not a start and a stop")
        if not before < one[0] < one[1] <= length:
            raise ValueError(f"given has the range {one}, which is out of order or of the canvas")
        before = one[1]


def given_after(run: dict[str, Any], row: int = 0) -> np.ndarray:
    """(G,) bool: positions from `prompt_length` on whose text is there from the beginning."""
    given = np.zeros(run["gen_length"], dtype=bool)
    for start, stop in run["given"][row] if "given" in run else ():
        given[start - run["prompt_length"] : stop - run["prompt_length"]] = True
    return given


def _check_run_types(run: dict[str, Any]) -> None:
    for name in sorted(set(RUN_TYPES) ^ (set(run) - {"edits", "given", "weights"})):
        raise ValueError(f"it {'lacks' if name in RUN_TYPES else 'has an unknown'} {name[:40]!r}")
    for name, kind in RUN_TYPES.items():
        if type(run[name]) is not kind or (kind is str and len(run[name]) > 200):
            raise ValueError(f"{name} is {str(run[name])[:40]!r}, not a short {kind.__name__}")
    if run.get("weights", "fp8") != "fp8":
        raise ValueError(f"weights is {str(run['weights'])[:40]!r}, not 'fp8'")


def check_layout(tensors: Mapping[str, Any], run: dict[str, Any]) -> None:
    """Compare what a file's header says of its arrays with the run, before any of them is read.

    tensors: name -> an object with `shape` and `dtype`, as safetensors names dtypes.
    """
    seconds = tensors["seconds"]["shape"]
    steps = seconds[0] if len(seconds) == 1 else 0
    if steps < 1:
        raise ValueError(f"it has {steps} steps; it must have at least 1")
    length, config = run["prompt_length"] + run["gen_length"], ModelConfig(**run["shape"])
    sizes = dict(T=length, G=run["gen_length"], K=CANDIDATES, S=steps, C=steps + 1)
    sizes |= dict(L=config.layers, W=5, **_guess_sizes(tensors, steps * run["gen_length"]))
    for name in ARRAYS:
        if name in tensors or name not in OPTIONAL:
            _check_array(name, tensors[name]["shape"], tensors[name]["dtype"], sizes)
    for name in sorted(set(tensors) - set(ARRAYS)):
        raise ValueError(f"it has an unknown array {name[:40]!r}")


def _guess_sizes(tensors: Mapping[str, Any], most: int) -> dict[str, int]:
    """Lengths of the axes N, at most `most`, and M; {} where no guesses were kept. That they are
    those of the predictions is checked with the values."""
    there = [name for name in GUESSES if name in tensors]
    if not there:
        return {}
    if len(there) < len(GUESSES):
        raise ValueError(f"it has {there[0]} without the other arrays of guesses")
    n, m = (tensors[name]["shape"][0] for name in ("guess_count", "guess"))
    if not 0 <= n <= most or not 0 <= m <= CANDIDATES * n:
        raise ValueError(f"it has {m} guesses of {n} predictions; more than its steps can make")
    return {"N": n, "M": m}


def _check_guesses(arrays: Arrays) -> None:
    """That there are as many counts as predictions, and as many guesses as counted."""
    if "guess" not in arrays:
        return
    predictions, counts = int((~np.isneginf(arrays["confidence"])).sum()), arrays["guess_count"]
    if len(counts) != predictions:
        raise ValueError(f"guess_count has shape {counts.shape}; it must have ({predictions},)")
    if len(counts) and not counts.max() <= CANDIDATES:
        raise ValueError(f"guess_count has values outside 0 to {CANDIDATES}")
    if len(arrays["guess"]) != counts.sum():
        raise ValueError(f"guess has shape {arrays['guess'].shape}; it must have ({counts.sum()},)")


def _check_array(name: str, shape: list[int], stored: str, sizes: dict[str, int]) -> None:
    """Shape and kind of dtype. sizes: of each axis letter."""
    dtype, axes = ARRAYS[name]
    wanted = tuple(sizes[axis] for axis in axes)
    if tuple(shape) != wanted:
        raise ValueError(f"{name} has shape {str(tuple(shape))[:60]}; it must have {wanted}")
    found = STORED.get(stored)
    if found is None or (found.kind == "f") != (np.dtype(dtype).kind == "f"):
        raise ValueError(f"{name} has type {found or stored[:20]}, not {np.dtype(dtype)}")


def checked_arrays(arrays: Arrays, run: dict[str, Any]) -> Arrays:
    """The arrays in their documented dtypes, once their values fit each other and the run.

    Their layout has passed `check_layout`.
    """
    length, config = run["prompt_length"] + run["gen_length"], ModelConfig(**run["shape"])
    _check_ranges(arrays, len(arrays["seconds"]), length, config)
    converted = {
        name: arrays[name].astype(dtype) for name, (dtype, _) in ARRAYS.items() if name in arrays
    }
    _check_guesses(converted)
    _check_values(converted, run, config)
    return converted


def _check_ranges(arrays: Arrays, steps: int, length: int, config: ModelConfig) -> None:
    bounds: dict[str, tuple[float, float]] = {
        "tokens": (0, config.vocab - 1),
        "candidates": (0, config.vocab - 1),
        "guess": (0, config.vocab - 1),
        "guess_share": (0, 1.001),
        "step_of_token": (-1, steps - 1),
        "density": (0, 1.001),
        "seconds": (0, 1e6),
        "candidate_confidence": (0, 1.001),
        "predicted": (0, 2 * length),
        "why": (0, 255),
        "recomputed": (0, 1),
        "work": (0, 2 * config.layers * (2 * length) ** 2),
        "parts": (0, 31),
    }
    for name, (low, high) in bounds.items():
        # `not (low <= x <= high)` also refuses NaN
        if name in arrays and not ((arrays[name] >= low) & (arrays[name] <= high)).all():
            raise ValueError(f"{name} has values outside {low} to {high}")


def _check_values(arrays: Arrays, run: dict[str, Any], config: ModelConfig) -> None:
    """What a range alone does not say of confidence, tokens and rollout."""
    p, length = run["prompt_length"], run["prompt_length"] + run["gen_length"]
    confidence, step_of_token = arrays["confidence"], arrays["step_of_token"]
    if not (np.isneginf(confidence) | ((confidence >= 0) & (confidence <= 1.001))).all():
        raise ValueError("confidence has values that are neither -inf nor in 0 to 1")
    edited = {(e["step"], int(at) - p) for e in run.get("edits", []) for at in e["tokens"]}
    written = np.flatnonzero(step_of_token >= 0)
    by_model = [g for g in written if (step_of_token[g], g) not in edited]
    if np.isneginf(confidence[step_of_token[by_model], by_model]).any():
        raise ValueError("a position was written at a step that has no confidence for it")
    if not (arrays["tokens"][:-1, p:] == config.mask_id).any(1).all():
        raise ValueError("a step starts from a canvas without a mask")
    first = arrays["tokens"][0, p:] != config.mask_id
    if "given" in run and (first != given_after(run)).any():
        raise ValueError("its first canvas has other given positions than its run says")
    mass = arrays["rollout"][~np.isnan(arrays["rollout"])]
    if not ((mass >= -1e-3) & (mass <= 1.01 * length)).all():
        raise ValueError(f"rollout has values outside 0 to {length}")
