"""CUDA graphs: a step on a GPU without the host between its kernels.

The same functions as in the plain loop, called with row counts rounded up to a few sizes, are
captured once and replayed from then on. One graph plans the next step and sends six numbers to
the host; another, one for each size, runs the layers, chooses tokens and lets the policy observe.
What a policy or a decoder remembers from step to step is found in its attributes and kept at fixed
addresses. Whatever cannot be captured (a policy that reads the device, say) runs plainly.

Without this file the engine works, slower.
"""

from __future__ import annotations

import gc
import logging
import operator
import time
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, wraps
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import CANDIDATES, Candidates, Canvas, Plan, Step
from d2cache.decoders.base import Decoder
from d2cache.model import Block, Model
from d2cache.policies.base import CachePolicy
from d2cache.rows import Rows
from d2cache.work import Work, masks_of, nothing_left, rows_of

try:
    from d2cache import kernels
except ImportError:  # no Triton
    kernels = None

LOG = logging.getLogger(__name__)
KEPT = 2  # arenas of a model that stay for later runs
SPLIT = 256  # rows up to which our attention is faster than torch's
PLAIN: dict[tuple[str, str], str] = {}  # policy and decoder that cannot be captured -> why
ARENAS: WeakKeyDictionary[Model, list[Arena]] = WeakKeyDictionary()


def supports(model: Model, policy: CachePolicy) -> bool:
    """Whether this file may try: a policy in disguise (a probe) and a model that is split over
    devices are left to the plain loop."""
    whole = type(model) is Model and all(type(block) is Block for block in model.blocks)
    return whole and type(policy) is policy.registry.get(policy.key)


def bucket(count: int, most: int) -> int:
    """The size that stands for `count` rows: rounded up, by more the more there are."""
    for step, until in ((8, 32), (16, 128), (32, 256), (64, 512), (128, 1024)):
        if count <= until:
            return min(most, -(-max(count, 1) // step) * step)
    return min(most, -(-count // 256) * 256)


def on_its_device(method):
    """With the model's device as the current one: kernels and graphs go to no other."""

    @wraps(method)
    def there(self, *args):
        device = self.model.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return method(self, *args)

    return there


class GraphWork(Work):
    """`Work` by graphs from the second step on; the first is a full pass and runs plainly.

    A graph is made in three turns: the first time a size comes up its work runs from Python, the
    second time it is captured, later it is replayed.
    """

    capture = True  # off in tests on a CPU: every turn is a first one

    def begin(self, canvas):
        super().begin(canvas)
        self.arena, self.ahead = None, False
        names = self.policy.key, self.decoder.key
        self.plain = bool(self.run.edits) or names in PLAIN

    def close(self):
        super().close()
        if self.arena is not None:
            self.arena.busy = False

    @on_its_device
    def plan(self, canvas):
        if self.plain or canvas.step == 0:
            return super().plan(canvas)
        if self.arena is None:
            self.arena = enter(self, canvas)
        if not (self.ahead or self.look_ahead(canvas)):
            return super().plan(canvas)
        return self.arena.box.plan  # which the device may still be writing

    @on_its_device
    def rows(self, canvas, plan):
        """Of a plan that was made ahead, only how many rows there are."""
        if not self.ahead:
            return super().rows(canvas, plan)
        self.ahead = False
        self.fill(canvas)  # while the device plans
        rows, _, heads, _, *rest = self.arena.read()
        if nothing_left(canvas, *rest):
            return None
        length = canvas.tokens.shape[1]
        return bucket(rows, length), bucket(heads, length - canvas.prompt_length)

    def fill(self, canvas) -> None:
        """Draw the random numbers that the step needs."""
        for name, drawn in zip(("uniform", "noise"), self.draw(canvas), strict=True):
            if drawn is not None:
                getattr(self.arena.box, name).copy_(drawn)

    def look_ahead(self, canvas) -> bool:
        """Plan the next step behind this one; the counts are read when it comes."""
        self.ahead = self.attempt("plan", (), self.plan_ahead, canvas.step) is not None
        return self.ahead

    @on_its_device
    def step(self, canvas, plan, rows):
        if isinstance(rows, Rows):
            return super().step(canvas, plan, rows)
        made = self.attempt("step", rows, lambda: self.compute(*rows), canvas.step)
        if made is None:
            return self.step_as_planned(canvas)
        step = made.unpack(self.run, canvas)
        self.look_ahead(step.after)
        return step

    def step_as_planned(self, canvas):
        """Without a graph, the step whose plan and random numbers are in the arena."""
        box = self.arena.box
        masks = tuple(m.clone() for m in box.masks)
        plan = fixed(box.plan, torch.clone)
        counts = [int(m.sum(1).amax()) for m in masks]
        full = int(masks[0].sum(1).amin()) == canvas.tokens.shape[1]
        rows = rows_of(canvas, masks, self.model.config.shift, *counts, full)
        logits = self.model(canvas.tokens, rows, self.policy)
        self.mark_seen(canvas, rows)
        return self.write(canvas, plan, rows, logits, box.uniform, box.noise)

    # What is captured: no host in it, state only through the arena.

    def plan_ahead(self):
        box, canvas = self.arena.box, self.arena.canvas()
        with ops.using(small_rules(self.model, canvas)):
            box.plan = self.policy.plan(canvas)
            shift, ids = self.model.config.shift, self.policy.kv.ids
            if isinstance(canvas, Facts):
                plan = box.plan.predict, box.plan.refresh
                box.masks, counts = kernels.masks(
                    canvas.tokens, ids, *plan, canvas.live, box.stuck, shift
                )
            else:
                box.masks, counts = masks_of(canvas, box.plan, shift, box.stuck, ids)
        self.arena.host.copy_(counts, non_blocking=True)
        return True

    def compute(self, rows: int, heads: int):
        box, canvas, shift = self.arena.box, self.arena.canvas(), self.model.config.shift
        small = small_rules(self.model, canvas)
        with ops.using(small):
            some = rows_of(canvas, box.masks, shift, rows, heads, None, full=False)
        rules = Rules(self, canvas, some)
        with ops.using(small | rules.table):
            early = rules.beside(lambda: early_values(self.run, canvas, box.plan, some))
            rules.beside(lambda: self.mark_seen(canvas, some))
            known = rules.done
            logits = self.layers(canvas.tokens, some, rules)
            rules.join(known)
            step = self.write(canvas, box.plan, some, logits, box.uniform, box.noise)
            rules.join(rules.done)
            if self.policy.parts is None and not step.shadow:
                vars(step).update(early)
            box.tokens, box.stuck = step.after.tokens, self.stuck
            return Packed(step, None if self.tempered() else rules.top)

    def tempered(self) -> bool:
        return self.decoder.temperature > 0 or self.decoder.top_p < 1

    def layers(self, tokens, rows, rules):
        """`Model.forward`, with what lies between the products fused where that is possible."""
        model, policy, kv = self.model, self.policy, self.policy.kv
        x = model.embed(tokens.gather(1, rows.index))
        rows = replace(rows, rope=tuple(t[rows.position][:, None] for t in self.arena.rope))
        own = type(policy).block is CachePolicy.block
        if not rules.fused:
            for i, block in enumerate(model.blocks):
                x = policy.block(i, block, x, rows)
            return model.head(model.norm(ops.rows_at(x, rows.head)))
        if (
            own
            and type(policy).project is CachePolicy.project
            and (room := rules.room(model, policy))
        ):
            return self.chained(x, rows, rules, room)
        delta = None
        for i, block in enumerate(model.blocks):
            rules.layer, swift = i, Swift(block)
            if not own or type(policy).project is not CachePolicy.project:
                x = policy.block(i, swift, x, rows)
                continue
            eps = model.config.norm_eps
            x, y = kernels.add_norm(x, delta, block.attn_norm.weight, eps)
            qkv = rules.product(y, block.qkv_proj)
            k, v = kv.at(i)
            q = kernels.rotate_write(qkv, rows.rope, rows.index, k, v, model.config.heads)
            delta = policy.attend(i, swift, q, k, v, rows)
            x, y = kernels.add_norm(x, delta, block.mlp_norm.weight, eps)
            delta = block.down_proj(kernels.swiglu(block.gate_up_proj(y)))
        x = x if delta is None else x + delta
        x = ops.rows_at(x, rows.head)
        return model.head(kernels.add_norm(x, None, model.norm.weight, model.config.norm_eps)[1])

    def chained(self, x, rows, rules, room):
        """All layers by one kernel, or one for each link where attention is the policy's own."""
        model, kv, eps = self.model, self.policy.kv, self.model.config.norm_eps
        flat, blocks, last = x.flatten(0, 1), list(model.blocks), len(model.blocks)
        rope = tuple(t.flatten(0, 2) for t in rows.rope)

        def link(first, last, slots, heads=None):
            kernels.chain(room, blocks, first, last, flat, eps, rope, rows.index, slots, heads)

        if rules.whole:
            link(0, last, kernels.Slots(rules.q, kv.k, kv.v, rules.lse))
            rules.ask_later(model, self.policy)
        else:
            heads = None
            for i, block in enumerate(blocks):
                rules.layer = i
                k, v = kv.at(i)
                q, lse = (rules.slot(t) for t in (rules.q, rules.lse))
                link(i, i, kernels.Slots(q[None], k[None], v[None], lse[None]), heads)
                attended = self.policy.attend(i, Bare(block), rules.query(), k, v, rows)
                heads = attended.heads.flatten(0, 1)
            link(last, last, kernels.Slots(rules.q, kv.k, kv.v, rules.lse), heads)
        x = ops.rows_at(flat.view_as(x), rows.head)
        return model.head(kernels.add_norm(x, None, model.norm.weight, eps)[1])

    # Three turns, and the way back.

    def attempt(self, kind: str, size: tuple, work, step: int):
        """work() with all state at its fixed addresses, by replay where it was captured before;
        None when that is not possible: then the run goes on plainly, from the same state."""
        if self.plain:
            return None
        arena, owners = self.arena, self.owners(self.arena)
        try:
            return arena.run(kind, size, work, step, owners, self.capture)
        except torch.cuda.OutOfMemoryError:
            reason = "out of memory"
        except Exception as error:  # a capture fails in as many ways as there are policies
            reason = (str(error) or type(error).__name__).splitlines()[0]
            PLAIN[self.policy.key, self.decoder.key] = reason
        LOG.warning("no graphs for %s and %s: %s", self.policy.key, self.decoder.key, reason)
        self.plain = True
        arena.leave(owners)
        ARENAS[self.model] = [a for a in ARENAS[self.model] if a is not arena]
        return None

    def owners(self, arena: Arena) -> tuple:
        return self.policy, self.decoder, arena.box


def fused(model: Model) -> bool:
    """Whether the kernels are made for this model: 16-bit on a GPU, heads of 16, 32, 64.."""
    width = model.config.head_width
    return (
        kernels is not None
        and model.device.type == "cuda"
        and model.dtype.itemsize == 2
        and width >= 16
        and width & (width - 1) == 0
    )


def hands_on(policy: CachePolicy) -> bool:
    """Whether the class whose `attend` a policy uses says that it hands on what it is given."""
    own = next(cls for cls in type(policy).__mro__ if "attend" in vars(cls))
    return vars(own).get("hands_on", False)


def stored_by_rows(block: Block) -> bool:
    """Whether `kernels.chain` can read a layer's weights: row by row, at multiples of 16 bytes."""
    products = block.qkv_proj, block.out_proj, block.gate_up_proj, block.down_proj
    return all(p.weight.is_contiguous() and p.weight.data_ptr() % 16 == 0 for p in products)


def small_rules(model: Model, canvas: Canvas) -> dict:
    """What stands in for the rules of `ops` that work on (B,T) alone."""
    if not fused(model) or canvas.tokens.shape[1] > kernels.LONGEST:
        return {}
    return dict(
        indices=kernels.indices,
        list_rows=kernels.list_rows,
        top_k_mask=kernels.top_k_mask,
        nucleus=kernels.nucleus,
        certainty_density=_density,
        moved_most=kernels.moved_most,
        search_window=kernels.search_window,
    )


def _density(known, sigma):
    one = not isinstance(sigma, Tensor)
    return (kernels if one else PLAINLY).certainty_density(known, sigma)


def reads_logits(decoder: type) -> bool:
    """Whether any function of the decoder's classes names logits: only then are they made float32.

    Otherwise the kernel that chooses tokens reads them as they are, and sums in float32."""
    own = (cls for cls in decoder.__mro__ if issubclass(cls, Decoder) and cls is not Decoder)
    code = (getattr(f, "__code__", None) for cls in own for f in vars(cls).values())
    return any(c is not None and "logits" in c.co_names + c.co_varnames for c in code)


def early_values(run, canvas: Canvas, plan: Plan, rows: Rows) -> dict:
    """What a step says of its rows, known before the layers run; and masks for later."""
    step = Step(run, canvas.step, canvas, canvas, plan, rows, None, None, None)
    _ = canvas.eligible, canvas.known
    return {name: getattr(step, name) for name in ("recomputed", "why", "work", "predicted")}


class Rules:
    """What stands in for the rules of `ops` on the layers of `count` rows."""

    def __init__(self, work: GraphWork, canvas: Canvas, rows: Rows):
        c = work.model.config
        (batch, count), device = rows.index.shape, canvas.tokens.device
        self.fused, self.layer, self.top, self.table = fused(work.model), 0, None, {}
        self.mass = self.aside = self.done = None
        self.last = c.layers - 1
        if not self.fused:
            return
        self.rows, self.length, self.kv = rows, canvas.tokens.shape[1], work.policy.kv
        self.main, self.aside = torch.cuda.current_stream(), work.arena.aside
        self.raw = not (work.tempered() or reads_logits(type(work.decoder)))
        few, self.weights = count <= kernels.MOST_ROWS, []
        keeps = few and type(work.policy).attend is not CachePolicy.attend
        self.kept = c.layers if keeps else 1  # a sweep over the layers needs every q
        self.heads, self.width = c.heads, c.width
        self.wide = (c.heads + 2 * c.kv_heads) * c.head_width
        self.make = lambda *size, dtype=work.model.dtype: torch.empty(
            self.kept, batch, *size, dtype=dtype, device=device
        )
        self.lse = self.make(c.heads, count, dtype=torch.float32)
        self.table = dict(choose_tokens=self.choose_tokens, temper=self.temper)
        self.table |= dict(quantize_rows=kernels.quantize_rows)
        if few:
            self.table |= dict(attention_map=self.attention_map, rollout_mass=self.rollout_mass)

    @cached_property
    def qkv(self) -> Tensor:
        return self.make(self.rows.index.shape[1], self.wide)

    @cached_property
    def q(self) -> Tensor:
        return self.make(self.rows.index.shape[1], self.width)

    def query(self) -> Tensor:
        """This layer's q (B,H,R,D)."""
        return self.slot(self.q).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def room(self, model: Model, policy: CachePolicy) -> kernels.Room | None:
        """Room for `kernels.chain` where it serves this model and so many rows."""
        c, rows, device = model.config, self.rows.index.numel(), self.rows.index.device
        if model.dtype != torch.bfloat16 or model.weights is not None:
            return None
        if not all(map(stored_by_rows, model.blocks)):
            return None
        alone = len(self.rows.index) == 1 and self.rows.keys is None
        form = kernels.served(c, c.layers, rows, device) if alone and hands_on(policy) else None
        self.whole = form is not None
        form = form or kernels.served(c, 2, rows, device)
        return form and kernels.Room.made(form, rows, c.layers + 1, device)

    def ask_later(self, model: Model, policy: CachePolicy) -> None:
        """Attention of every layer by a policy that hands on what it is given, for all layers have
        run by one kernel."""
        for i, block in enumerate(model.blocks):
            self.layer, later = i, Later()
            policy.attend(i, Bare(block), later, later, later, self.rows)

    def slot(self, store: Tensor) -> Tensor:
        return store[self.layer % len(store)]

    def product(self, y: Tensor, linear) -> Tensor:
        """linear(y) in the place of this layer."""
        out = self.slot(self.qkv)
        linear.part(y.flatten(0, 1), slice(None), out.flatten(0, 1))
        return out

    def attention_map(self, q, k, v, keys):
        if keys is not None and keys.dim() == 3:
            return PLAINLY.attention_map(q, k, v, keys)
        if isinstance(q, Later):
            k, _ = self.kv.at(self.layer)
            out, weights = q, kernels.Weights(self.query(), k, self.slot(self.lse), keys)
        else:
            out, weights = kernels.attention(q, k, v, keys, lse=self.slot(self.lse))
        self.weights.append(weights)
        if self.layer == self.last and len(self.weights) == self.kept:
            # most likely a rollout is wanted: it runs while the LM head reads its weights
            made = self.weights, self.rows.index, self.rows.valid, self.length
            self.mass = self.beside(lambda: kernels.rollout(*made))
        return out, weights

    def rollout_mass(self, maps, rows, valid, length):
        if not isinstance(maps[0], kernels.Weights):
            return PLAINLY.rollout_mass(maps, rows, valid, length)
        if self.mass is not None and all(a is b for a, b in zip(maps, self.weights, strict=True)):
            self.join(self.done)
            return self.mass
        return kernels.rollout(maps, rows, valid, length)

    def beside(self, work):
        """work() in a branch of its own, which begins here and is awaited by `join`."""
        if self.aside is None:
            return work()
        self.aside.wait_stream(self.main)
        with torch.cuda.stream(self.aside):
            made = work()
        self.done = self.aside.record_event()
        return made

    def join(self, done) -> None:
        if done is not None:
            self.main.wait_event(done)

    def temper(self, logits, temperature, top_p):
        return logits if self.raw else PLAINLY.temper(logits, temperature, top_p)

    def choose_tokens(self, logits, uniform):
        top, ids, lse = kernels.likeliest(logits, CANDIDATES)
        self.top = ids, (top - lse[..., None]).exp()
        if uniform is not None:
            return PLAINLY.choose_tokens(logits, uniform)
        return ids[..., 0], self.top[1][..., 0]


PLAINLY = SimpleNamespace(
    **{
        name: getattr(ops, name).__wrapped__
        for name in (
            "attention_map",
            "rollout_mass",
            "choose_tokens",
            "certainty_density",
            "temper",
        )
    }
)


class Swift:
    """A Block whose MLP and attention use the kernels."""

    def __init__(self, block: Block):
        self.block = block

    def __getattr__(self, name):
        return getattr(self.block, name)

    def attend(self, q, k, v, keys):
        if q.shape[2] > SPLIT or (keys is not None and keys.dim() == 3):
            return Block.attend(self, q, k, v, keys)
        return self.project_out(kernels.attention(q, k, v, keys)[0])

    def mlp(self, x):
        block = self.block
        y = kernels.add_norm(x, None, block.mlp_norm.weight, block.config.norm_eps)[1]
        return block.down_proj(kernels.swiglu(block.gate_up_proj(y)))


@dataclass(frozen=True, eq=False)
class Joined:
    """The heads (B,R,d) of a layer before its output projection, and nothing else can be done
    with them."""

    heads: Tensor | Later


class Later:
    """Stands for q, k, v and outputs of a layer that the kernel of all layers attends to: to be
    handed on, no more."""


class Bare(Swift):
    """A Block whose output projection, and attention itself if that is asked, is left to what
    comes next."""

    def attend(self, q, k, v, keys):
        return Joined(q) if isinstance(q, Later) else super().attend(q, k, v, keys)

    def project_out(self, y):
        return Joined(y) if isinstance(y, Later) else Joined(y.transpose(1, 2).flatten(2))


class Facts(Canvas):
    """A Canvas whose masks come from one kernel, all at once."""

    @cached_property
    def facts(self) -> tuple[Tensor, ...]:
        size = self.prompt_length, self.block_length
        return kernels.facts(self.tokens, self.start, *size, self.mask_id)

    masked = cached_property(lambda self: self.facts[0])
    known = cached_property(lambda self: self.facts[1])
    block = cached_property(lambda self: self.facts[2])
    eligible = cached_property(lambda self: self.facts[3])
    live = cached_property(lambda self: self.facts[4])


class Packed:
    """A step's tensors in one buffer (logits apart), to leave the graph by one copy."""

    def __init__(self, step: Step, top):
        self.step, self.tempered, found = step, top is None, {}
        parts = (step.plan, step.rows, step.candidates)
        for one in parts:
            for f in fields(one):
                value = getattr(one, f.name)
                if isinstance(value, Tensor) and f.name not in ("logits", "keys"):
                    found[type(one), f.name] = value
        names = ["accepted", "rollout", "parts", "recomputed", "why", "work", "changed"]
        names += ["written", "predicted"]
        for name in names:
            if (value := getattr(step, name)) is not None:
                found[Step, name] = value
        found[Canvas, "tokens"] = step.after.tokens
        if top is not None:
            found[Step, "ids"], found[Step, "shares"] = top
        # widest first: then each lies at a multiple of its size
        self.found = sorted(found.items(), key=lambda kv: -kv[1].element_size())
        flat = [t.contiguous().flatten().view(torch.uint8) for _, t in self.found]
        self.buffer = torch.cat(flat)
        self.sizes = [len(t) for t in flat]

    def unpack(self, run, before: Canvas) -> Step:
        """The step, in tensors of its own."""
        made, step = {}, self.step
        pieces = self.buffer.clone().split(self.sizes)
        for ((owner, name), like), piece in zip(self.found, pieces, strict=True):
            made.setdefault(owner, {})[name] = piece.view(like.dtype).view(like.shape)
        logits = step.logits.clone()
        after = replace(before, **made[Canvas], step=before.step + 1)
        rows = Rows(**made[Rows], keys=before.own if before.padded else None, full=step.rows.full)
        chosen = Candidates(
            **{"density": None} | made[Candidates],
            logits=step.candidates.logits.clone() if self.tempered else logits,
        )
        seen = made[Step]
        out = Step(
            run,
            before.step,
            before,
            after,
            Plan(**made[Plan], as_shipped=step.plan.as_shipped),
            rows,
            logits,
            chosen,
            seen.pop("accepted"),
            rollout=seen.pop("rollout", None),
            parts=seen.pop("parts", None),
            shadow=step.shadow,
        )
        if "ids" in seen:
            seen["likeliest"] = seen.pop("ids"), seen.pop("shares")
        vars(out).update(seen)
        return out


class Number:
    """A step's number while a step is traced: what is asked of it is noted, and a graph serves
    the steps for which the answers are the same."""

    __hash__ = None

    def __init__(self, arena: Arena, of):
        self.arena, self.of = arena, of

    def __bool__(self):
        return self.arena.ask(lambda step: bool(self.of(step)))


def _sums(name):
    act = getattr(operator, name)
    return lambda self, other: Number(self.arena, lambda step: act(self.of(step), other))


def _asks(name):
    act = getattr(operator, name)
    return lambda self, other: self.arena.ask(lambda step: act(self.of(step), other))


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Number, f"__{_name}__", _sums(_name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Number, f"__{_name}__", _asks(_name))


def fixed(value, change, step=None):
    """A copy of what an attribute holds, `change` made to each tensor in it.

    A remembered canvas leaves its cached properties behind, and its step unless one is given."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(fixed(v, change, step) for v in value)
    if isinstance(value, dict):
        return {k: fixed(v, change, step) for k, v in value.items()}
    if isinstance(value, Canvas):
        tokens, start = change(value.tokens), change(value.start)
        return replace(value, tokens=tokens, start=start, step=PAST if step is None else step)
    if is_dataclass(value) and not isinstance(value, type):
        # as it is, fields and all: cached properties stay behind
        return replace(
            value, **{f.name: fixed(getattr(value, f.name), change, step) for f in fields(value)}
        )
    return value


def leaves(value, into: list) -> list:
    """Tensors and plain values in an attribute, in one order; objects of other kinds by id."""
    if isinstance(value, (list, tuple)):
        into.append(len(value))
        for v in value:
            leaves(v, into)
    elif isinstance(value, dict):
        for v in value.values():
            leaves(v, into)
    elif isinstance(value, Canvas):
        into += [value.tokens, value.start]
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            leaves(getattr(value, f.name), into)
    else:
        into.append(value)
    return into


class Past:
    """The step number of a canvas that was remembered: nothing may be decided by it."""

    def _refuse(self, *_):
        raise TypeError("a remembered canvas was asked for its step")

    __bool__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __add__ = __sub__ = _refuse
    __hash__ = None


PAST = Past()


class Arena:
    """State at fixed addresses, and the graphs over it; for runs of one shape, one at a time."""

    def __init__(self, key, work: GraphWork, canvas: Canvas):
        device = canvas.tokens.device
        self.key, self.busy, self.now, self.guards = key, True, 0, []
        self.cuda = device.type == "cuda"
        self.entries: dict[tuple, list[SimpleNamespace]] = {}
        self.host = torch.zeros(6, dtype=torch.int64, pin_memory=self.cuda)
        if self.cuda:
            self.pool = torch.cuda.graph_pool_handle()
            # what runs beside the layers must not hold them up
            self.side, self.aside = torch.cuda.Stream(priority=-1), torch.cuda.Stream(priority=0)
            self.read_back = torch.cuda.Event()
        kind = Facts if small_rules(work.model, canvas) and not canvas.stop_at_eos else Canvas
        self.first = kind(**{f.name: getattr(canvas, f.name) for f in fields(canvas)})
        self.first = fixed(self.first, torch.clone)
        blank = torch.zeros_like(canvas.masked)
        drawn = torch.zeros(blank.shape, device=device)
        self.box = SimpleNamespace(
            tokens=canvas.tokens.clone(),
            stuck=torch.zeros((), dtype=torch.bool, device=device),
            plan=Plan(blank.clone(), blank.clone(), blank.to(torch.uint8)),
            masks=tuple(blank.clone() for _ in range(3)),
            uniform=drawn if work.decoder.temperature > 0 else None,
            noise=drawn.clone() if work.decoder.draws else None,
        )
        every = torch.arange(canvas.tokens.shape[1], device=device)[None]
        self.rope = tuple(t[0, 0] for t in work.model.rotary(every))
        self.kv = work.policy.kv
        self.state = [
            {k: fixed(v, torch.clone) for k, v in attributes(one)} for one in work.owners(self)
        ]
        self.settle(work.owners(self))

    def adopt(self, work: GraphWork, canvas: Canvas) -> bool:
        """Another run's state after its first step into this arena; False if it has other forms."""
        kv, pairs = work.policy.kv, []
        self.box.tokens.copy_(canvas.tokens)
        self.box.stuck.zero_()
        self.first.start.copy_(canvas.start)
        self.box.plan = self.state[2]["plan"]
        for one, state in zip((work.policy, work.decoder), self.state, strict=False):
            new = dict(attributes(one))
            if set(new) != set(state):
                return False
            for name, old in state.items():
                a, b = leaves(old, []), leaves(new[name], [])
                if len(a) != len(b) or not all(map(alike, a, b)):
                    return False
                pairs += [(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, Tensor)]
                state[name] = graft(old, new[name])
        pairs += [(self.kv.k, kv.k), (self.kv.v, kv.v), (self.kv.ids, kv.ids)]
        for old, new in pairs:
            old.copy_(new)
        work.policy.kv = self.kv
        self.busy = True
        self.settle(work.owners(self))
        return True

    def canvas(self) -> Canvas:
        """The canvas now, without anything worked out about it yet."""
        return replace(self.first, tokens=self.box.tokens, step=Number(self, lambda step: step))

    def settle(self, owners) -> None:
        """Owners' attributes as the arena has them, remembered canvases without cached values."""
        for one, state in zip(owners, self.state, strict=True):
            vars(one).update({k: fixed(v, lambda t: t) for k, v in state.items()})
        self.form = tuple(
            v
            for state in self.state
            for value in state.values()
            for v in leaves(value, [])
            if not isinstance(v, Tensor)
        )

    def leave(self, owners) -> None:
        """State of its own for a run that goes on plainly: back to where the last work ended."""
        for one, state in zip(owners, self.state, strict=True):
            vars(one).update({k: fixed(v, torch.clone, self.now) for k, v in state.items()})
        if self.cuda:
            torch.cuda.synchronize()

    def ask(self, question) -> bool:
        answer = question(self.now)
        self.guards.append((question, answer))
        return answer

    def read(self) -> list[int]:
        if self.cuda:
            self.read_back.synchronize()
        return self.host.tolist()

    def known(self, kind, size, step: int) -> SimpleNamespace | None:
        """What was traced for this size, and for steps like this one."""
        found = self.entries.setdefault((kind, size, self.form), [])
        return next((e for e in found if all(q(step) == a for q, a in e.guards)), None)

    def run(self, kind, size, work, step, owners, capture):
        """See `GraphWork.attempt`."""
        self.now = step
        entry = self.known(kind, size, step)
        if entry is None or not capture:
            found = self.entries.setdefault((kind, size, self.form), [])
            backup = [{k: fixed(v, torch.clone) for k, v in state.items()} for state in self.state]
            try:
                entry = self.trace(work, owners)
            except BaseException:
                for old, kept in self.pairs(backup):
                    old.copy_(kept)
                raise
            if capture:
                found.append(entry)
        else:
            if entry.graph is None:
                self.capture(entry, kind, size, work, owners)
            self.replay(entry, owners)
        if kind == "plan" and self.cuda:
            self.read_back.record()
        return entry.made

    def pairs(self, other) -> list[tuple[Tensor, Tensor]]:
        """Tensors of the state with those of a copy of it."""
        return [
            (a, b)
            for state, kept in zip(self.state, other, strict=True)
            for name, old in state.items()
            for a, b in zip(leaves(old, []), leaves(kept[name], []), strict=True)
            if isinstance(a, Tensor)
        ]

    def replay(self, entry, owners) -> None:
        entry.graph.replay()
        for one, state, after in zip(owners, self.state, entry.after, strict=True):
            vars(one).update(after)
            state.update(after)
        self.form = entry.form

    def capture(self, entry, kind, size, work, owners) -> None:
        begin, graph = time.perf_counter(), torch.cuda.CUDAGraph()
        self.side.wait_stream(torch.cuda.current_stream())
        collects = gc.isenabled()
        gc.disable()  # another arena's graphs must not be let go while this one is made
        try:
            with torch.cuda.stream(self.side):
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    new = self.trace(work, owners)
                finally:
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()
        torch.cuda.current_stream().wait_stream(self.side)
        vars(entry).update(vars(new), graph=graph)
        what = "plan" if kind == "plan" else f"{size[0]} rows, {size[1]} predictions"
        LOG.info("captured a graph (%s) in %.2f s", what, time.perf_counter() - begin)

    def trace(self, work, owners) -> SimpleNamespace:
        """work() from Python; what it leaves in the owners goes back to the fixed addresses."""
        self.settle(owners)
        self.guards = []
        made = work()
        old, new = [], []
        for one, state in zip(owners, self.state, strict=True):
            after = dict(attributes(one))
            for name in after.keys() | state.keys():
                a, b = leaves(state.get(name), []), leaves(after.get(name), [])
                if name not in state or len(a) != len(b) or not all(map(alike, a, b)):
                    raise TypeError(f"{type(one).__name__}.{name} changes its form between steps")
                for x, y in zip(a, b, strict=True):
                    if isinstance(x, Tensor) and x is not y:
                        old.append(x)
                        new.append(y)
                state[name] = graft(state[name], after[name])
        places = {t.untyped_storage().data_ptr() for t in old}
        # read all before any is written
        new = [t.clone() if t.untyped_storage().data_ptr() in places else t for t in new]
        for kind in {t.dtype for t in old}:
            pairs = [(x, y) for x, y in zip(old, new, strict=True) if x.dtype == kind]
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
        self.settle(owners)
        after = [{k: v for k, v in state.items()} for state in self.state]
        return SimpleNamespace(
            graph=None,
            made=made,
            guards=self.guards,
            after=after,
            form=self.form,
        )


def attributes(one):
    """What an owner remembers: all but K,V, which are written in place, and its own run's flag."""
    return [(k, v) for k, v in vars(one).items() if k not in ("kv", "running")]


def alike(a, b) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return type(a) is type(b)


def graft(old, new):
    """The plain values of `new` around the tensors of `old`."""
    kept = iter([t for t in leaves(old, []) if isinstance(t, Tensor)])
    return fixed(new, lambda _: next(kept))


def enter(work: GraphWork, canvas: Canvas) -> Arena:
    """An arena for this run: one that an earlier run of its kind left, or a new one."""
    kinds = [(one.key, *one.settings().items()) for one in (work.policy, work.decoder)]
    key = (
        *kinds,
        tuple(canvas.tokens.shape),
        canvas.prompt_length,
        canvas.block_length,
        canvas.padded,
        canvas.stop_at_eos,
        work.capture,
    )
    kept = ARENAS.setdefault(work.model, [])
    for arena in kept:
        if arena.key == key and not arena.busy and arena.adopt(work, canvas):
            return arena
    arena = Arena(key, work, canvas)
    idle = [a for a in kept if not a.busy]
    for old in idle[: 1 - KEPT]:
        old.entries.clear()  # their graphs, and what holds the arena in a circle
    ARENAS[work.model] = [a for a in kept if a.busy] + idle[1 - KEPT :] + [arena]
    return arena
