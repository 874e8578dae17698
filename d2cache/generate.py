"""The only decoding loop: a generator of Step. Everything else consumes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from d2cache import plain
from d2cache.canvas import Canvas, Run, Step
from d2cache.decoders import Decoder, make_decoder
from d2cache.edit_runner import EditRunner, checked
from d2cache.edits import Edit
from d2cache.memory import OutOfMemory, free_memory, in_one_sentence
from d2cache.model import Model
from d2cache.policies import CachePolicy, make_policy
from d2cache.registry import Registered
from d2cache.work import Work

Prompts = Tensor | ArrayLike | Sequence[Tensor] | Mapping[str, Any]


def generate(
    model: Model,
    prompt_ids: Prompts,
    policy: str | CachePolicy = "d2",
    decoder: str | Decoder = "confidence",
    gen_length: int = 128,
    block_length: int | None = None,
    seed: int | Sequence[int] = 0,
    stop_at_eos: bool = False,
    edits: Sequence[Edit] = (),
    eager: bool | None = None,
) -> Iterator[Step]:
    """Fill `gen_length` masked positions after the prompt, one denoising step at a time.

    prompt_ids: (P,) or (B,P) integers, or a list of B one-dimensional prompts of any lengths
    (shorter prompts are padded on the left; neither padding nor batch mates change a row's result),
    or what a tokenizer returns: a mapping with input_ids, and with attention_mask if it padded.
    block_length: semi-autoregressive blocks of this many positions, default the whole answer.
    seed: one for all rows or one per row, used when sampling. stop_at_eos: a row ends when
    everything before its first end-of-text token is written; what is masked by then stays masked.
    False here, unlike on the command line and the page: the number of steps then follows from the
    arguments alone, which measurements need, and graphs may keep the canvas in kernels on a GPU.
    edits: changes made by hand after steps of a run of one row, see `Edit`.
    eager: True launches every operation from Python on a GPU too, False lets graphs replay them
    where they can; None means False unless D2CACHE_EAGER=1 is set. No effect on a CPU.

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
    )
    if eager is not None and plain.switch(eager) is None:
        raise ValueError(f"eager is {eager!r}; it must be True, False or None")
    eager = os.environ.get("D2CACHE_EAGER") == "1" if eager is None else bool(eager)
    return _loop(model, canvas, policy, decoder, run, eager)


@torch.inference_mode()
def _loop(
    model: Model, canvas: Canvas, policy: CachePolicy, decoder: Decoder, run: Run, eager: bool
) -> Iterator[Step]:
    worker = _worker(model, policy, eager)
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


def open_canvas(
    model: Model,
    prompt_ids: Prompts,
    gen_length: int,
    block_length: int | None = None,
    stop_at_eos: bool = False,
) -> Canvas:
    """A canvas of prompts and masks; ValueError for bad input."""
    c = model.config
    prompts = _as_prompts(prompt_ids, c.vocab)
    gen_length = _length("gen_length", gen_length)
    block_length = gen_length if block_length is None else _length("block_length", block_length)
    if (stops := plain.switch(stop_at_eos)) is None:
        raise ValueError(f"stop_at_eos is {stop_at_eos!r}; it must be True or False")
    longest = max(len(p) for p in prompts)
    if longest + gen_length > c.max_length:
        raise ValueError(
            f"prompt of {longest} tokens + answer of {gen_length} is {longest + gen_length}; "
            f"{c.name} has room for {c.max_length}: shorten one of them"
        )
    tokens = torch.full((len(prompts), longest + gen_length), c.mask_id, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - len(prompt) : longest] = prompt
    start = torch.tensor([longest - len(p) for p in prompts])
    return Canvas(
        tokens.to(model.device),
        start.to(model.device),
        longest,
        min(block_length, gen_length),
        c.mask_id,
        c.eos_id,
        padded=bool(start.any()),
        stop_at_eos=stops,
    )


def _length(name: str, given: object) -> int:
    value = plain.whole(given)
    if value is None or value < 1:
        raise ValueError(f"{name} is {given!r}; it must be a whole number of at least 1")
    return value


def _as_prompts(prompt_ids: Any, vocab: int) -> list[Tensor]:
    """One tensor (P,) int64 on the CPU per row."""
    if isinstance(prompt_ids, Mapping) and "input_ids" in prompt_ids:
        return _as_prompts(_without_padding(prompt_ids), vocab)
    try:
        if not isinstance(prompt_ids, Tensor) and len(prompt_ids) and not _is_number(prompt_ids[0]):
            prompts = [torch.as_tensor(p) for p in prompt_ids]
        else:
            whole = torch.as_tensor(prompt_ids)
            prompts = list(whole) if whole.dim() == 2 else [whole]
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            f"prompt_ids is {type(prompt_ids).__name__}; it must be token ids (P,) or (B,P), such "
            "as model.encode(text)"
        ) from error
    if not prompts:
        raise ValueError("the prompt is empty; it needs at least one token")
    return [_checked_prompt(p, vocab) for p in prompts]


def _without_padding(encoding: Mapping[str, Any]) -> Any:
    """The ids that a tokenizer's encoding holds: (P,), (B,P), or a list of B rows."""
    ids, mask = encoding["input_ids"], encoding.get("attention_mask")
    if mask is None:
        return ids
    try:
        pairs = zip(ids, mask, strict=True) if np.ndim(mask[0]) else [(ids, mask)]
        return [torch.as_tensor(i)[torch.as_tensor(m).bool()] for i, m in pairs]
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            "prompt_ids has an attention_mask that does not fit its input_ids; pass them as the "
            "tokenizer returned them"
        ) from error


def _checked_prompt(prompt: Tensor, vocab: int) -> Tensor:
    floats = prompt.is_floating_point() or prompt.is_complex()
    floats = floats and bool(prompt.numel())  # an empty list has no type of its own
    if prompt.dim() != 1 or floats or prompt.dtype == torch.bool:
        raise ValueError(
            f"prompt_ids has shape {tuple(prompt.shape)} and type {prompt.dtype}; "
            "it must be integer token ids (P,) or (B,P)"
        )
    if not len(prompt):
        raise ValueError("the prompt is empty; it needs at least one token")
    prompt = prompt.to("cpu", torch.int64)  # some unsigned types have no minimum
    if prompt.min() < 0 or prompt.max() >= vocab:
        raise ValueError(
            f"prompt_ids has values from {prompt.min()} to {prompt.max()}; "
            f"the vocabulary has ids 0 to {vocab - 1}"
        )
    return prompt


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, complex)) or getattr(value, "ndim", None) == 0


def _row_seeds(seed: int | Sequence[int], batch: int) -> tuple[int, ...]:
    one = plain.whole(seed)
    several = isinstance(seed, (Sequence, np.ndarray, Tensor)) and np.ndim(seed) == 1
    seeds = [plain.whole(s) for s in cast(Sequence[int], seed)] if several else [one] * batch
    checked = tuple(s for s in seeds if s is not None and 0 <= s < 2**63)
    if len(seeds) != batch or len(checked) != batch:
        raise ValueError(
            f"seed is {seed!r}; it must be a whole number from 0 to 2**63 - 1, or one per row"
        )
    return checked
