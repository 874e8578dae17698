"""The only decoding loop: a generator of Step. Everything else consumes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas, Plan, Rows, Run, Step, on_canvas
from d2cache.decoders import Decoder, make_decoder
from d2cache.edits import Edit, Hand, checked
from d2cache.model import Model
from d2cache.policies import CachePolicy, make_policy
from d2cache.shadow import Shadow


def generate(
    model: Model,
    prompt_ids,
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
    (shorter ones are padded on the left; neither padding nor batch mates change a row's result).
    block_length: semi-autoregressive blocks of this many positions, default the whole answer.
    seed: one for all rows or one a row, for what is drawn by lot. stop_at_eos: a row ends
    when everything before its first end-of-text token is written; what is masked by then stays so.
    edits: changes by hand after steps of the run (of one row), see `Edit`.
    eager: True launches every operation from Python on a GPU too, False lets graphs replay them
    where they can; None means False unless D2CACHE_EAGER=1 is set. On a CPU it changes nothing.

    Each step, numbered as below: 1 the policy plans rows; 2 rows become indices, with the one
    host sync; 3 the model runs on them; 4 the decoder accepts candidates, and may mask what it
    doubts again, then come the edits; 5 the policy observes.

    Raises ValueError for bad input at the call, RuntimeError when a step accepts nothing.
    """
    policy = make_policy(policy) if isinstance(policy, str) else policy
    decoder = make_decoder(decoder) if isinstance(decoder, str) else decoder
    for given, base in ((policy, CachePolicy), (decoder, Decoder)):
        if not isinstance(given, base):
            raise ValueError(
                f"the {base.kind} is {given!r}; it must be a registered name or an object made "
                f"by make_{base.kind}"
            )
    canvas = open_canvas(model, prompt_ids, gen_length, block_length, stop_at_eos)
    seeds = _row_seeds(seed, canvas.tokens.shape[0])
    run = Run(
        model=model.config.name,
        policy=policy.key,
        policy_knobs=policy.settings(),
        decoder=decoder.key,
        decoder_knobs=decoder.settings(),
        prompt_length=canvas.prompt_length,
        gen_length=gen_length,
        block_length=canvas.block_length,
        seeds=seeds,
        stop_at_eos=stop_at_eos,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        shape=asdict(model.config),
        tokenizer=model.tokenizer,
        edits=checked(edits, canvas, model.config, policy, decoder),
        weights=model.weights,
    )
    eager = os.environ.get("D2CACHE_EAGER") == "1" if eager is None else eager
    return _steps(model, canvas, policy, decoder, run, eager)


@torch.inference_mode()
def _steps(model, canvas, policy, decoder, run, eager) -> Iterator[Step]:
    for one in (policy, decoder):
        if one.running:
            raise ValueError(f"this {one.kind} object is in another run; make a second one")
    policy.running = decoder.running = True
    hand = Hand(run.edits)
    work = _worker(model, policy, eager)(model, policy, decoder, run, hand)
    try:
        yield from _loop(work, canvas)
    finally:
        work.close()
        hand.undo()
        policy.running = decoder.running = False


def _worker(model, policy, eager: bool) -> type[Work]:
    """Who does the work of a step: graphs on a GPU where they are there and serve, else `Work`."""
    if eager or model.device.type != "cuda":
        return Work
    try:
        from d2cache import graphs
    except ImportError:  # without Triton, or without that file
        return Work
    return graphs.Graphs if graphs.serve(model, policy) else Work


def _loop(work: Work, canvas: Canvas) -> Iterator[Step]:
    work.begin(canvas)
    while True:
        start = time.perf_counter()
        planned = work.plan(canvas)
        if planned is None:
            return
        step = work.step(canvas, *planned, start)
        yield step
        canvas = step.after


class Work:
    """What a step does, numbered as in `generate`."""

    def __init__(self, model: Model, policy: CachePolicy, decoder: Decoder, run: Run, hand: Hand):
        self.model, self.policy, self.decoder = model, policy, decoder
        self.run, self.hand = run, hand
        self.randoms = [torch.Generator().manual_seed(seed) for seed in run.seeds]
        self.stuck = torch.zeros((), dtype=torch.bool, device=model.device)

    def begin(self, canvas: Canvas) -> None:
        self.policy.begin(self.model, canvas)
        self.decoder.begin(self.model, canvas)

    def close(self) -> None:
        """Called once at the end of the run, however it ended."""

    def plan(self, canvas: Canvas) -> tuple[Plan, Rows] | None:
        """Steps 1 and 2; None when nothing is left to write."""
        plan = self.hand.plan(self.policy, canvas)  # 1
        shift, ids = self.model.config.shift, self.policy.kv.ids
        rows = gather_rows(canvas, plan, shift, self.stuck, ids)  # 2
        return None if rows is None else (plan, rows)

    def step(self, canvas: Canvas, plan: Plan, rows: Rows, start: float) -> Step:
        """Steps 3 to 5. start: when the step began, on the host's clock."""
        logits = self.model(canvas.tokens, rows, self.policy)  # 3
        self.note(canvas, rows)
        step = self.write(canvas, plan, rows, logits, *self.draw(canvas))
        return replace(step, seconds=time.perf_counter() - start)

    def note(self, canvas: Canvas, rows: Rows) -> None:
        """Layer 0 has seen these rows with the ids that stand there."""
        self.policy.kv.ids.scatter_(1, rows.index, canvas.tokens.gather(1, rows.index))

    def draw(self, canvas: Canvas) -> tuple[Tensor | None, Tensor | None]:
        """What this step draws by lot, (B,T) float32 uniform in [0,1) each: to pick tokens with,
        and for a decoder that draws."""

        def lots(wanted: bool) -> Tensor | None:
            # one number a position and step, whatever rows are computed: batch mates change nothing
            if not wanted:
                return None
            gen = canvas.tokens.shape[1] - canvas.prompt_length
            drawn = torch.stack([torch.rand(gen, generator=g) for g in self.randoms])
            drawn = torch.nn.functional.pad(drawn, (canvas.prompt_length, 0))
            return drawn.to(self.model.device, non_blocking=True)

        return lots(self.decoder.temperature > 0), lots(self.decoder.draws)

    def write(self, canvas, plan, rows, logits, uniform, noise) -> Step:
        """Steps 4 and 5, from the logits (B,Q,V)."""
        policy, decoder, config = self.policy, self.decoder, self.model.config
        logits[..., config.mask_id] = -torch.inf  # a model may predict [MASK], for ever
        candidates = _candidates(canvas, plan, rows, logits, decoder, uniform, noise)
        accepted = decoder.accept(canvas, candidates)  # 4
        self.stuck = (canvas.live & ~accepted.any(1)).any()
        tokens = torch.where(accepted, candidates.tokens, canvas.tokens)
        shadow = Shadow(self.model, policy.kv, canvas)
        doubted = decoder.revise(canvas, accepted, shadow)
        if doubted is not None:
            tokens = torch.where(doubted, canvas.mask_id, tokens)
        tokens = self.hand.write(canvas.step, tokens, policy, decoder)
        after = replace(canvas, tokens=tokens, step=canvas.step + 1)
        step = Step(
            self.run,
            canvas.step,
            canvas,
            after,
            plan,
            rows,
            logits,
            candidates,
            accepted,
            parts=policy.parts,
            shadow=shadow.rows,
        )
        policy.observe(after, step)  # 5
        return replace(step, rollout=policy.rollout)


def open_canvas(model, prompt_ids, gen_length, block_length=None, stop_at_eos=False) -> Canvas:
    """A canvas of prompts and masks; ValueError says what is wrong with the input."""
    c = model.config
    prompts = _as_prompts(prompt_ids, c.vocab)
    block_length = gen_length if block_length is None else block_length
    for name, value in (("gen_length", gen_length), ("block_length", block_length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
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
        stop_at_eos=stop_at_eos,
    )


def _as_prompts(prompt_ids, vocab: int) -> list[Tensor]:
    """One tensor (P,) int64 on the CPU a row."""
    try:
        if not isinstance(prompt_ids, Tensor) and len(prompt_ids) and not _is_number(prompt_ids[0]):
            prompts = [torch.as_tensor(p) for p in prompt_ids]
        else:
            whole = torch.as_tensor(prompt_ids)
            prompts = list(whole) if whole.dim() == 2 else [whole]
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            f"prompt_ids is {type(prompt_ids).__name__}; it must be token ids (P,) or (B,P)"
        ) from error
    if not prompts:
        raise ValueError("the prompt is empty; it needs at least one token")
    checked = []
    for p in prompts:
        if p.dim() != 1 or p.is_floating_point() or p.is_complex() or p.dtype == torch.bool:
            raise ValueError(
                f"prompt_ids has shape {tuple(p.shape)} and type {p.dtype}; "
                "it must be integer token ids (P,) or (B,P)"
            )
        if not len(p):
            raise ValueError("the prompt is empty; it needs at least one token")
        p = p.to("cpu", torch.int64)  # some unsigned types have no minimum
        if p.min() < 0 or p.max() >= vocab:
            raise ValueError(
                f"prompt_ids has values from {p.min()} to {p.max()}; "
                f"the vocabulary has ids 0 to {vocab - 1}"
            )
        checked.append(p)
    return checked


def _is_number(value) -> bool:
    return isinstance(value, (int, float, complex)) or getattr(value, "ndim", None) == 0


def _row_seeds(seed, batch: int) -> tuple[int, ...]:
    seeds = tuple(seed) if isinstance(seed, Sequence) else (seed,) * batch
    if len(seeds) != batch or not all(type(s) is int and 0 <= s < 2**63 for s in seeds):
        raise ValueError(
            f"seed is {seed!r}; it must be a whole number from 0 to 2**63 - 1, or one a row"
        )
    return seeds


def gather_rows(canvas: Canvas, plan: Plan, shift: int, stuck: Tensor, ids: Tensor) -> Rows | None:
    """Masks to indices, with the step's one host sync; None when nothing is left to write.

    ids (B,T): the token id that layer 0 last saw at each position.
    """
    masks, counts = masks_of(canvas, plan, shift, stuck, ids)
    rows, all_rows, heads, changed, *rest = counts.tolist()
    if nothing_left(canvas, *rest):
        return None
    full = all_rows == canvas.tokens.shape[1]
    return rows_of(canvas, masks, shift, rows, heads, changed, full)


def masks_of(canvas, plan, shift, stuck, ids) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The rows to compute, those of them that predict and those whose id is new, (B,T) bool each;
    and counts (6,) int64: most and fewest rows, most that predict, most new, rows of the batch
    with something left to write, and whether the step before wrote nothing."""
    live = canvas.live[:, None]
    # the logits that predict position j stand at row j - shift
    source = plan.predict.roll(-shift, 1) & live
    wanted = (plan.refresh & live) | source
    fresh = wanted & (canvas.tokens != ids)
    counts = torch.stack(
        (
            wanted.sum(1).amax(),
            wanted.sum(1).amin(),
            source.sum(1).amax(),
            fresh.sum(1).amax(),
            live.sum(),
            stuck,
        )
    )
    return (wanted, source, fresh), counts


def nothing_left(canvas: Canvas, left: int, stalled: int) -> bool:
    if stalled:
        raise RuntimeError(
            f"step {canvas.step - 1} wrote nothing: the decoder must accept at least one "
            "computed position of the open block"
        )
    return not left


def rows_of(canvas, masks, shift: int, rows: int, heads: int, changed: int | None, full: bool):
    """The masks of `masks_of` as `Rows`: so many of each, those at hand repeated to fill up; all
    are fresh where their number is not known (changed None)."""
    wanted, source, new = masks
    index, valid, position, head, at = ops.list_rows(wanted, source, canvas.start, rows, heads)
    if changed is None:
        fresh = torch.arange(rows, device=index.device).expand_as(index)
    else:
        fresh, _ = ops.rows_among(wanted, new, changed)
    return Rows(
        index=index,
        valid=valid,
        position=position,
        head=head,
        target=at + shift,
        keys=canvas.own if canvas.padded else None,
        full=full,
        fresh=fresh,
        wanted=wanted,
        new=new,
    )


def _candidates(canvas, plan, rows, logits, decoder, uniform, noise) -> Candidates:
    """Logits of the predicting rows -> candidates on the canvas (B,T)."""
    logits = ops.temper(logits, decoder.temperature, decoder.top_p)
    picks = None if uniform is None else uniform.gather(1, rows.target)
    tokens, probability = ops.choose_tokens(logits, picks)
    computed = plan.predict & canvas.live[:, None]
    certainty = decoder.certainty(logits, probability)
    confidence = on_canvas(certainty, rows.target, computed, -torch.inf)
    if plan.as_shipped:
        confidence = confidence.masked_fill(canvas.masked & ~computed, 1 / logits.shape[-1])
    return Candidates(
        tokens=torch.zeros_like(canvas.tokens).scatter(1, rows.target, tokens),
        confidence=confidence,
        density=decoder.prior(canvas, plan.as_shipped),
        logits=logits,
        target=rows.target,
        computed=computed,
        noise=noise,
    )
