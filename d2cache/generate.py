"""The only decoding loop: a generator of Step. Everything else consumes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import cast

import numpy as np
import torch
from torch import Tensor

from d2cache import plain, prompts
from d2cache.canvas import Canvas, Run, Step
from d2cache.decoders import Decoder, make_decoder
from d2cache.edit_runner import EditRunner, checked
from d2cache.edits import Edit
from d2cache.memory import OutOfMemory, free_memory, in_one_sentence
from d2cache.model import Model
from d2cache.opening import Prompts, given_ranges, open_canvas
from d2cache.policies import CachePolicy, make_policy
from d2cache.registry import Registered
from d2cache.work import Work


def generate(
    model: Model,
    prompt_ids: Prompts,
    policy: str | CachePolicy = "d2",
    decoder: str | Decoder = "confidence",
    gen_length: int | None = None,
    block_length: int | None = None,
    seed: int | Sequence[int] = 0,
    stop_at_eos: bool = False,
    edits: Sequence[Edit] = (),
    eager: bool | None = None,
) -> Iterator[Step]:
    """Write the answer into masked positions after the prompt, one denoising step at a time.

    prompt_ids: (P,) or (B,P) integers, or a list of B one-dimensional prompts of any lengths
    (shorter prompts are padded on the left; neither padding nor batch mates change a row's result),
    or what a tokenizer returns: a mapping with input_ids, and with attention_mask if it padded.
    Masks may be anywhere in them, `model.config.mask_id`: they are filled as well, and the text
    around them stays. gen_length: masks to append, 0 for none; by default 128, or none where the
    prompts hold masks. `fill` does this for a text with gaps.
    block_length: semi-autoregressive blocks of this many positions, counted from the row's first
    mask, default the whole answer. seed: one for all rows or one per row, used when sampling.
    stop_at_eos: a row ends when everything before its first end-of-text token is written; what is
    masked by then stays masked. A given one, or one that given text follows, ends nothing.
    False here, unlike on the command line and the page: the number of steps then follows from the
    arguments alone, which measurements need, and graphs may keep the canvas in kernels on a GPU.
    edits: changes made by hand after steps of a run of one row, see `Edit`.
    eager: True launches every operation from Python on a GPU too, False lets graphs replay them
    where they can; None means False unless D2CACHE_EAGER=1 is set. No effect on a CPU, nor where
    given text follows a mask: the graphs and their kernels are made for an answer in one piece.

    Each step, numbered as below and in `Work`: 1 the policy plans rows; 2 rows become indices, with
    the one host sync; 3 the model runs on them; 4 the decoder accepts candidates and may mask
    doubtful positions again, then edits are applied; 5 the policy observes.

    Raises ValueError for bad input at the call, and in the run when memory runs out or the logits
    are not numbers; RuntimeError when a step accepts nothing.
    """
    if not isinstance(model, Model):
        raise ValueError(f"the model is {model!r:.60}; pass the model that d2cache.load returns")
    policy = make_policy(policy) if isinstance(policy, str) else policy
    decoder = make_decoder(decoder) if isinstance(decoder, str) else decoder
    for given, base in ((policy, CachePolicy), (decoder, Decoder)):
        if not isinstance(given, base):
            raise ValueError(
                f"the {base.kind} is {given!r}; it must be a registered name or an object made "
                f"by make_{base.kind}"
            )
    canvas = open_canvas(model, prompt_ids, gen_length, block_length, stop_at_eos)
    _check_room(model, canvas)
    run = Run(
        model=model.config.name,
        policy=policy.key,
        policy_knobs=policy.settings(),
        decoder=decoder.key,
        decoder_knobs=decoder.settings(),
        prompt_length=canvas.prompt_length,
        gen_length=canvas.tokens.shape[1] - canvas.prompt_length,
        block_length=canvas.block_length,
        seeds=_row_seeds(seed, canvas.tokens.shape[0]),
        stop_at_eos=canvas.stop_at_eos,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        shape=asdict(model.config),
        tokenizer=model.tokenizer,
        edits=checked(edits, canvas, model.config, policy, decoder),
        weights=model.weights,
        given=given_ranges(canvas),
    )
    if eager is not None and plain.switch(eager) is None:
        raise ValueError(f"eager is {eager!r:.80}; it must be True, False or None")
    eager = os.environ.get("D2CACHE_EAGER") == "1" if eager is None else bool(eager)
    return _loop(model, canvas, policy, decoder, run, eager)


def fill(
    model: Model,
    text: str | list[str] | Prompts,
    policy: str | CachePolicy = "d2",
    decoder: str | Decoder = "confidence",
    block_length: int | None = None,
    seed: int | Sequence[int] = 0,
    edits: Sequence[Edit] = (),
    eager: bool | None = None,
) -> Iterator[Step]:
    """Write what is missing in a text: `generate` where there are masks among given tokens.

    text: "Tom has 5 apples. He buys ___ of 4 apples.", in which a run of underscores is a gap of as
    many tokens, see `Model.encode_gaps`; or several such texts; or token ids as `generate` takes
    them, with `model.config.mask_id` where a token is to be written. The rest is as in `generate`;
    every mask is written, whatever the model writes into the others.

    Raises ValueError as `generate` does, and for a text without a gap.
    """
    return generate(
        model,
        model.encode_gaps(text) if prompts.is_text(text) else text,
        policy,
        decoder,
        gen_length=0,
        block_length=block_length,
        seed=seed,
        edits=edits,
        eager=eager,
    )


@torch.inference_mode()
def _loop(
    model: Model, canvas: Canvas, policy: CachePolicy, decoder: Decoder, run: Run, eager: bool
) -> Iterator[Step]:
    worker = _worker(model, policy, eager or canvas.given is not None)
    step: Step | None = None
    with (
        in_one_sentence(f"{_size_of(canvas)} on {model.device}", SMALLER),
        _reserved(policy, decoder),
        closing(worker(model, policy, decoder, run, EditRunner(run.edits))) as work,
    ):
        work.begin(canvas)
        while True:
            start = time.perf_counter()
            plan = work.plan(canvas)  # 1
            try:
                rows = work.rows(canvas, plan)  # 2
            except RuntimeError:
                if step is not None:
                    _check_numbers(step)
                raise
            if rows is None:
                work.edits.report_missed(canvas.step)
                return
            step = work.step(canvas, plan, rows)  # 3 logits, 4 accept, 5 observe
            if not step.confidence.is_cuda:  # on a GPU, the next step's host sync reports it
                _check_numbers(step)
            _set_seconds(step, time.perf_counter() - start)
            yield step
            canvas = step.after


def _check_numbers(step: Step) -> None:
    if bool(step.confidence.isnan().any()):
        narrow = step.run.dtype in ("float16", "bfloat16")
        raise ValueError(
            f"the logits are not numbers in step {step.index}: the weights of {step.run.model} "
            f"hold NaN or infinity, or are too large for {step.run.dtype}; fetch them again"
            + (", or load them as float32" if narrow else "")
        )


SMALLER = "shorten the prompt or the answer, or run fewer rows at once"


def _size_of(canvas: Canvas) -> str:
    rows, length = canvas.tokens.shape
    return f"the run of {rows} x {length} positions does not fit"


def _check_room(model: Model, canvas: Canvas) -> None:
    """OutOfMemory for a run that a CPU cannot hold: the system would end the process in silence.

    A GPU reports it when it happens, and may hold the memory of an earlier run already.
    """
    if model.device.type != "cpu":
        return
    c, (rows, length) = model.config, canvas.tokens.shape
    kept = 2 * c.layers * c.kv_heads * c.head_width * length  # keys and values
    logits = c.vocab * (length - canvas.prompt_length)
    needed, free = rows * (kept + logits) * model.dtype.itemsize, free_memory(model.device)
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{_size_of(canvas)}: it needs {needed / 1e9:.1f} GB, and {model.device} has "
            f"{free / 1e9:.1f} GB free; {SMALLER}"
        )


def _worker(model: Model, policy: CachePolicy, eager: bool) -> type[Work]:
    """Who does the work of a step: on a GPU graphs, where they are installed and support the model
    and the policy; otherwise `Work`."""
    if eager or model.device.type != "cuda":
        return Work
    try:
        from d2cache import graphs
    except ImportError:  # the engine works without that package
        return Work
    return graphs.GraphWork if graphs.supports(model, policy) else Work


@contextmanager
def _reserved(*owners: Registered) -> Iterator[None]:
    """Policy and decoder hold the state of one run at a time."""
    for one in owners:
        if one.running:
            raise ValueError(f"this {one.kind} object is in another run; make a second one")
    for one in owners:
        one.running = True
    try:
        yield
    finally:
        for one in owners:
            one.running = False


def _set_seconds(step: Step, seconds: float) -> None:
    # in place: a copy would lose the cached properties that are computed already
    object.__setattr__(step, "seconds", seconds)


def _row_seeds(seed: int | Sequence[int], batch: int) -> tuple[int, ...]:
    one = plain.whole(seed)
    several = isinstance(seed, (Sequence, np.ndarray, Tensor)) and np.ndim(seed) == 1
    seeds = [plain.whole(s) for s in cast(Sequence[int], seed)] if several else [one] * batch
    checked = tuple(s for s in seeds if s is not None and 0 <= s < 2**63)
    if len(seeds) != batch or len(checked) != batch:
        raise ValueError(
            f"seed is {seed!r:.80}; it must be a whole number from 0 to 2**63 - 1, or one per row"
        )
    return checked
