"""Each cache policy against its rule, restated over a plain forward pass with its own stores.

The rules handle one row of a batch, as plain lists of positions, and use no function of the
engine. In every step they must give the same plan, the same parts of every layer, the same
confidences and the same K, V and other stored tensors, to 1e-9.
"""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab import (
    SMALL,
    Reference,
    assert_same_confidence,
    confidence_of,
    confidences,
    random_prompt,
    run,
    small_model,
)

import d2cache
from d2cache.canvas import Why
from d2cache.policies import make_policy
from d2cache.rows import Part

MASK, GEN = SMALL.mask_id, 12
PROMPTS = [random_prompt(n, n) for n in (5, 9, 7)]
FAMILIES = [{}, dict(kv_heads=2, qkv_bias=True, shift=1)]
STORED, THROUGH = int(Part.KEY | Part.VALUE), int(Part.ATTENTION | Part.MLP)


def reasons(sets):
    """{reason: positions} -> {position: its reasons}."""
    positions = sorted({j for rows in sets.values() for j in rows})
    return {j: sum(int(why) for why, rows in sets.items() if j in rows) for j in positions}


class Kept(Reference):
    """Everything a layer can store for one row: its inputs, K, V and both outputs."""

    def __init__(self, model, length):
        super().__init__(model, length)
        shape = (self.config.layers, length, self.config.width)
        self.hidden, self.attention, self.mlp = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(3)
        )

    def qkv(self, i, x, position):
        """x (R,d) -> q (R,H,D), k and v (R,Hkv,D)."""
        c, w, d = self.config, self.weight, self.head_width
        layer = f"blocks.{i}."
        y = self.norm(x, layer + "attn_norm.weight") @ w[layer + "qkv_proj.weight"].T
        y = (y + w.get(layer + "qkv_proj.bias", 0.0)).view(len(x), -1, d)
        q, k, v = y[:, : c.heads], y[:, c.heads : c.heads + c.kv_heads], y[:, -c.kv_heads :]
        position = torch.as_tensor(position)
        return self.turn(q, position), self.turn(k, position), v

    def look(self, i, q, keys):
        """q (R,H,D) over K,V stored at `keys` -> attention output (R,d), head-mean map (R,T)."""
        heads, total = [], torch.zeros(len(q), self.k.shape[1], dtype=torch.float64)
        for h in range(self.config.heads):
            shared = h * self.config.kv_heads // self.config.heads
            score = q[:, h] @ self.k[i, keys, shared].T / self.head_width**0.5
            share = (score - score.amax(1, keepdim=True)).exp()
            share = share / share.sum(1, keepdim=True)
            heads.append(share @ self.v[i, keys, shared])
            total[:, keys] += share / self.config.heads
        return torch.cat(heads, dim=1) @ self.weight[f"blocks.{i}.out_proj.weight"].T, total

    def feed(self, i, x):
        """The MLP's output for x (R,d)."""
        w, layer = self.weight, f"blocks.{i}."
        y = self.norm(x, layer + "mlp_norm.weight") @ w[layer + "gate_up_proj.weight"].T
        gate, up = y.chunk(2, dim=1)
        return (gate / (1 + (-gate).exp()) * up) @ w[layer + "down_proj.weight"].T


class Rule:
    """One row of a batch under a paper's rule. A subclass picks the rows, or runs the layers."""

    def __init__(self, model, canvas, b, knobs):
        self.b, self.knobs, self.shift = b, knobs, model.config.shift
        self.prompt, self.size = canvas.prompt_length, canvas.block_length
        self.length, self.start = canvas.tokens.shape[1], int(canvas.start[b])
        self.own = list(range(self.start, self.length))
        self.cache = Kept(model, self.length)
        self.layers = model.config.layers
        self.tokens = self.opened = None
        self.ids = [None] * self.length  # the token that layer 0 last saw

    def follow(self, step):
        """The expected step: predict, why, rows, parts, and the candidates."""
        before, tokens = self.tokens, step.before.tokens[self.b]
        self.tokens, self.step = tokens, step.index
        self.masked = [j for j in range(self.prompt, self.length) if tokens[j] == MASK]
        self.known = [j for j in self.own if j not in self.masked]
        first = (self.masked[0] - self.prompt) // self.size * self.size + self.prompt
        self.block = range(first, min(first + self.size, self.length))
        self.age = self.age + 1 if first == self.opened else 0  # steps since the block began
        self.opened = first
        self.written = [j for j in self.own if before is not None and tokens[j] != before[j]]
        predict, why = self.plan()
        why = dict(sorted(why.items()))
        rows = sorted(set(why) | {j - self.shift for j in predict})
        new = [j for j in self.passing(rows) if self.ids[j] != int(tokens[j])]
        for j in new:
            self.ids[j] = int(tokens[j])
        self.parts = np.zeros((self.layers, self.length), np.uint8)
        self.beside = [0] * 5  # work that is not of a row's part
        self.told = step.parts[self.b].numpy() if step.parts is not None else None
        x = dict(zip(rows, self.run(rows, new), strict=True))
        c = self.cache
        final = torch.stack([x[j - self.shift] for j in predict])
        logits = c.norm(final, "norm.weight") @ c.weight["head.weight"].T
        token, share = confidence_of(logits, MASK)
        return SimpleNamespace(
            predict=predict,
            why=why,
            rows=rows,
            new=new,
            parts=self.parts,
            beside=self.beside,
            token=token,
            share=share,
            own=self.own,
        )

    def all(self):
        return reasons({Why.FULL: self.own})

    def passing(self, rows):
        """Positions whose token layer 0 reads."""
        return rows

    def embed(self, rows):
        return self.cache.weight["embed.weight"][self.tokens[rows]]

    def project(self, i, x, rows):
        """q of the rows, after storing their K and V."""
        q, k, v = self.cache.qkv(i, x, [j - self.start for j in rows])
        self.cache.k[i, rows], self.cache.v[i, rows] = k, v
        return q

    def mark(self, i, rows, parts):
        self.parts[i, rows] |= parts

    def run(self, rows, new):
        """The rows through all layers -> (R,d)."""
        x = self.embed(rows)
        for i in range(self.layers):
            q = self.project(i, x, rows)
            keys = self.sees(i, q, rows)
            x = x + self.cache.look(i, q, keys)[0]
            x = x + self.cache.feed(i, x)
            self.mark(i, rows, THROUGH)
            self.mark(i, rows if i else new, STORED)
            self.mark(i, [j for j in self.own if j not in keys], int(Part.EVICTED))
        return x

    def sees(self, i, q, rows):
        return self.own


class NoCache(Rule):
    def plan(self):
        return self.masked, self.all()


class Decoded(Rule):
    def plan(self):
        if self.age in (0, 1) or self.age % self.knobs["reload"] == 0:
            return self.masked, self.all()
        return self.masked, reasons({Why.CHOSEN: self.masked, Why.WRITTEN: self.written})


class Prefix(Rule):
    full_at = 0

    def near(self):
        return range(self.block[0], self.length)

    def full(self):
        return self.age == 0

    def plan(self):
        if self.full():
            self.full_at = self.step
            return self.masked, self.all()
        back = self.shift * self.knobs.get("as_shipped", False)
        why = {j - back: int(Why.BLOCK if j in self.block else Why.WINDOW) for j in self.near()}
        return [j for j in self.masked if j in self.near()], why


class Dual(Prefix):
    def near(self):
        return self.block


class Window(Prefix):
    def near(self):
        low, high = self.block[0] - self.knobs["before"], self.block[0] + self.size
        return [j for j in self.own if low <= j < high + self.knobs["after"]]

    def full(self):
        late = self.knobs["every"] and self.step - self.full_at >= self.knobs["every"]
        return self.age == 0 or self.step < self.knobs["warmup"] or late


class Sparse(Rule):
    def plan(self):
        if self.age < 2:
            return self.masked, self.all()
        return [j for j in self.masked if j in self.block], reasons({Why.BLOCK: self.block})

    def sees(self, i, q, rows):
        if self.age == 0:
            self.kept = [None] * self.layers
        if self.age == 1:
            self.kept[i] = self.choose(i, q, rows)
        return self.own if self.age < 2 else self.kept[i]

    def choose(self, i, q, rows):
        c = self.cache.config
        outside = [j for j in self.own if j not in self.block]
        score = [0.0] * len(outside)
        for n, j in enumerate(outside):
            for h in range(c.heads):
                key = self.cache.k[i, j, h * c.kv_heads // c.heads]
                products = [float(q[rows.index(r), h] @ key) for r in self.block]
                score[n] += sum(products) / len(products) / c.heads
        pooled = [max(score[max(n - 1, 0) : n + 2]) for n in range(len(outside))]
        count = int(self.knobs["keep_ratio"] * len(outside))
        order = sorted(range(len(outside)), key=lambda n: (-pooled[n], n))[:count]
        return sorted({outside[n] for n in order} | set(self.block))


class DLLM(Rule):
    def __init__(self, *args):
        super().__init__(*args)
        self.ties = []  # layers

    def plan(self):
        self.due = [self.step % self.knobs[name] == 0 for name in ("kp", "kr")]
        return self.masked, reasons({Why.FULL: self.refreshed(self.knobs["first_layer"])})

    def refreshed(self, every):
        return [j for j in self.own if every or self.due[j >= self.prompt]]

    def passing(self, rows):
        return self.own  # every row passes, recomputed or from the store

    def run(self, rows, new):
        cache, answer = self.cache, list(range(self.prompt, self.length))
        at, x = [j - self.start for j in self.own], self.embed(self.own)
        for i in range(self.layers):
            every = self.knobs["first_layer"] and i == 0
            chosen = self.refreshed(every)
            q, k, v = (dict(zip(self.own, t, strict=True)) for t in cache.qkv(i, x, at))
            verify = self.knobs["rho"] > 0 and not (self.due[1] or every)
            if verify:
                chosen = chosen + self.moved_most(i, answer, v, new)
                chosen.sort()
            for j in self.own:
                if j in new if i == 0 else j in chosen:
                    cache.k[i, j], cache.v[i, j] = k[j], v[j]
                    self.mark(i, [j], STORED)
                if verify and i and j in answer:
                    cache.v[i, j] = v[j]
                    self.mark(i, [j], int(Part.VALUE))
                    self.beside[1] += j in chosen  # and again, with its K
            if chosen:
                some = x[[j - self.start for j in chosen]]
                out, _ = cache.look(i, torch.stack([q[j] for j in chosen]), self.own)
                cache.attention[i, chosen] = out
                cache.mlp[i, chosen] = cache.feed(i, some + out)
                self.mark(i, chosen, THROUGH)
            x = x + cache.attention[i, self.own] + cache.mlp[i, self.own]
        return x[[j - self.start for j in rows]]

    def moved_most(self, i, answer, v, new):
        """The rows of lowest cosine with the previous step's V; unmoved rows last, from the left.

        In layer 0 a row moves when its token is new, and two rows that wrote the same token move
        equally up to rounding: the engine may choose either of them.
        """
        away = {}
        for j in answer:
            a, b = v[j].flatten(), self.cache.v[i, j].flatten()
            away[j] = 1 - float(a @ b / ((a @ a) * (b @ b)).sqrt()) if i or j in new else -1.0
        order = sorted(answer, key=lambda j: (-away[j], j))
        pick = order[: int(self.knobs["rho"] * len(answer))]
        if not 0 < len(pick) < len(answer):
            return pick
        last, cut = away[pick[-1]], away[order[len(pick)]]
        if -1 < cut and last - cut < 1e-12:
            self.ties.append(i)
            told = [j for j in answer if self.told[i, j] & Part.MLP]
            assert len(told) == len(pick)
            assert set(told) ^ set(pick) <= {j for j in answer if abs(away[j] - cut) < 1e-12}
            return told
        return pick


class Elastic(Rule):
    def __init__(self, *args):
        super().__init__(*args)
        self.watched, self.seen = [None] * self.layers, [None] * self.layers

    def plan(self):
        self.window = self.masked[: self.knobs["beta"]]
        if self.step == 0:
            return self.masked, self.all()
        return self.window, reasons({Why.WINDOW: self.window, Why.WRITTEN: self.written})

    def run(self, rows, new):
        cache, x = self.cache, self.embed(rows)
        drifted = self.step == 0 or self.knobs["gamma"] > 1
        # q and scores of the watched positions, before and now: half the work of two rows
        self.beside = [0, 0, self.layers, 0, self.layers * len(self.own)]
        for i in range(self.layers):
            cache.hidden[i, rows] = x
            work = self.own if drifted else rows
            q = self.project(i, cache.hidden[i, work], work)
            out, maps = cache.look(i, q, self.own)
            y = cache.hidden[i, work] + out
            y = y + cache.feed(i, y)
            self.mark(i, work, THROUGH)
            self.mark(i, work if i or drifted else new, STORED)
            if drifted and i + 1 < self.layers:
                cache.hidden[i + 1, work] = y
            x = y[[work.index(j) for j in rows]]
            drifted = self.watch(i, maps[[work.index(j) for j in self.window]].sum(0)) or drifted
        return x

    def watch(self, i, mass):
        """Whether the watched position's attention drifted; then choose the next one to watch."""

        def attention(j):
            q, _, _ = self.cache.qkv(i, self.cache.hidden[i, [j]], [j - self.start])
            return self.cache.look(i, q, self.own)[1][0]

        drifted = False
        if self.step:
            now, then = attention(self.watched[i]), self.seen[i]
            cosine = float(now @ then / ((now @ now) * (then @ then)).sqrt())
            assert abs(cosine - self.knobs["gamma"]) > 1e-10, "guard: too close to decide"
            drifted = cosine < self.knobs["gamma"]
        self.watched[i] = max(self.known, key=lambda j: float(mass[j]))
        self.seen[i] = attention(self.watched[i])
        return drifted


RULES = {
    "none": NoCache,
    "dkv": Decoded,
    "prefix": Prefix,
    "dual": Dual,
    "window": Window,
    "sparse": Sparse,
    "dllm": DLLM,
    "elastic": Elastic,
}

CASES = [
    ("none", {}),
    ("dkv", dict(reload=3)),
    ("dkv", dict(reload=5)),
    ("prefix", {}),
    ("dual", {}),
    ("window", dict(before=2, after=1, warmup=2)),
    ("window", dict(before=0, after=3, warmup=0)),
    ("window", dict(before=1, after=0, warmup=3, every=2)),
    ("window", dict(before=20, after=1, warmup=1, every=3)),
    ("prefix", dict(as_shipped=True)),
    ("dual", dict(as_shipped=True)),
    ("dllm", dict(kp=5, kr=3)),
    ("dllm", dict(kp=3, kr=4, rho=0.0)),
    ("dllm", dict(kp=4, kr=50, rho=0.5, first_layer=True)),
    ("dllm", dict(kp=50, kr=4, rho=0.2, first_layer=True)),
    ("dllm", dict(kp=2, kr=5, rho=1.0)),
    ("elastic", dict(beta=3)),
    ("elastic", dict(beta=4, gamma=0.99)),
    ("elastic", dict(beta=2, gamma=0.6)),
    ("elastic", dict(beta=5, gamma=1.5)),
    ("sparse", dict(keep_ratio=0.4)),
    ("sparse", dict(keep_ratio=0.75)),
    ("sparse", dict(keep_ratio=0.0)),
]


def name_of(case):
    return case[0] + "".join(f"-{k}{v}" for k, v in case[1].items())


def where(mask):
    return mask.nonzero().flatten().tolist()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def play(case, model, prompts, decoder, **settings):
    """A run of the policy; in every step, what its rule expects of each unfinished row."""
    policy, rules = make_policy(case[0], **case[1]), []
    started = d2cache.generate(model, prompts, policy, decoder[0], **settings)
    assert len(list(islice(started, 3))) == 3, (
        "the object was used in another run, which stopped early"
    )
    started.close()
    decoder = d2cache.make_decoder(decoder[0], **decoder[1])
    for step in d2cache.generate(model, prompts, policy, decoder, **settings):
        rules = rules or [
            RULES[case[0]](model, step.before, b, policy.settings()) for b in range(len(prompts))
        ]
        told = [rule.follow(step) if step.before.live[rule.b] else None for rule in rules]
        yield step, told, rules, policy


def compare(step, told, rule, policy):
    b, cache, own = rule.b, rule.cache, slice(rule.start, None)
    assert where(step.plan.predict[b]) == told.predict
    assert {j: int(step.plan.why[b, j]) for j in where(step.plan.why[b])} == told.why
    if step.parts is None:
        assert where(step.rows.wanted[b]) == told.rows and where(step.rows.new[b]) == told.new
    else:
        assert np.array_equal(step.parts[b].numpy(), told.parts)
    assert where(step.confidence[b] > -torch.inf) == told.predict
    close(step.confidence[b, told.predict], told.share)
    assert torch.equal(step.candidates.tokens[b, told.predict], told.token)
    for mine, kept in ((policy.kv.k, cache.k), (policy.kv.v, cache.v)):
        close(mine[:, b].transpose(1, 2)[:, own], kept[:, own])
    for name in ("attention", "mlp", "hidden"):
        if hasattr(policy, name):
            close(getattr(policy, name)[:, b, own], getattr(cache, name)[:, own])
    if isinstance(rule, Elastic):
        assert policy.watched[:, b].tolist() == rule.watched
        close(policy.seen[:, b], torch.stack(rule.seen))
    counts = [
        sum(bool(cell & part) for layer in told.parts for cell in layer)
        for part in (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP)
    ]
    pairs = 0
    for layer in told.parts:
        seen = sum(not cell & Part.EVICTED for cell in layer[own])
        pairs += sum(bool(cell & Part.ATTENTION) for cell in layer) * seen
    counts = [a + b for a, b in zip(counts, told.beside, strict=False)]
    pairs += told.beside[4]
    shadow = step.shadow * len(told.parts)  # the decoder's own rows, each through every layer
    counts = [n + shadow for n in counts]
    assert step.work[b].tolist() == [*counts, pairs + shadow * (len(told.own) + step.shadow)]


THRESHOLD = ("threshold", dict(threshold=0.45))
WINO = ("wino", dict(wide_in=0.35, narrow_out=0.5))
MODES = {
    "one-block": (THRESHOLD, None, PROMPTS),
    "blocks": (THRESHOLD, 5, PROMPTS),
    "wino": (WINO, 5, PROMPTS),
    "one-token-prompts": (THRESHOLD, None, [random_prompt(1, seed) for seed in range(3)]),
}


@pytest.mark.parametrize("changes", FAMILIES, ids=["llada", "dream"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_policy_follows_its_rule_at_every_step(case, mode, changes):
    """A padded batch of three, whose rows advance at different speeds and end at different steps.

    The object was in another run before. WINO masks written positions again.
    """
    decoder, block_length, prompts = MODES[mode]
    model, live, again = small_model(50, **changes), set(), 0
    for step, told, rules, policy in play(
        case, model, prompts, decoder, gen_length=GEN, block_length=block_length
    ):
        live.add(tuple(step.before.live.tolist()))
        again += int((step.after.masked & ~step.before.masked).sum())
        for rule in rules:
            if step.before.live[rule.b]:
                compare(step, told[rule.b], rule, policy)
            else:
                assert not step.work[rule.b].any() and not step.recomputed[rule.b].any()
    if case[0] == "dllm":
        ties = [i for rule in rules for i in rule.ties]
        assert not any(ties) and len(ties) <= 3, "guard: too few choices are clear"
    if case[0] == "none":
        assert len(live) > 1, "guard: rows must end at different steps"
        assert (again > 0) is (mode == "wino" and bool(changes)), (
            "guard: WINO must doubt some tokens"
        )


def test_a_full_pass_beside_an_ended_row_still_evicts():
    """With a one-token prompt, one block and shifted logits, it is as wide as a small step."""
    model, prompts = small_model(50, **FAMILIES[1]), [random_prompt(1, s) for s in (7, 8, 9)]
    decoder, ended = ("threshold", dict(threshold=0.3)), 0
    for step, told, rules, policy in play(("sparse", {}), model, prompts, decoder, gen_length=6):
        ended += step.index == 1 and int((~step.before.live).sum())
        for rule in rules:
            if step.before.live[rule.b]:
                compare(step, told[rule.b], rule, policy)
    assert ended, "guard: a row must end with the first step"


@pytest.mark.parametrize("case", [c for c in CASES if c[0] != "none"], ids=name_of)
def test_a_trace_gives_the_age_of_what_each_layer_stores(case):
    model, steps, parts = small_model(51), [], []
    for step, told, _, _ in play(case, model, [random_prompt(6)], THRESHOLD, gen_length=GEN):
        steps.append(step)
        parts.append(told[0].parts)
    trace = d2cache.Trace.record(iter(steps))
    assert np.array_equal(trace.recomputed_by_layer, np.array(parts) & Part.MLP > 0)
    for part in (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP):
        ages = trace.age(part)
        # without parts, layer 0's K,V count as recomputed with their row: they are exact at any age
        for i in range(0 if trace.parts is not None else 1, 3):
            for j in range(6 + GEN):
                last = None
                for s in range(len(steps)):
                    last = s if parts[s][i, j] & part else last
                    assert ages[s, i, j] == (-1 if last is None else s - last)


@pytest.mark.parametrize("policy", ["prefix", "dual", "window", "dkv", "sparse"])
def test_a_block_finished_by_its_full_pass_needs_no_other(policy):
    decoder = ("threshold", dict(threshold=0.0))
    steps = run(small_model(3), PROMPTS, policy, decoder, gen_length=24, block_length=8)
    assert len(steps) == 3
    for step in steps:
        assert torch.equal(step.recomputed, step.before.own)


def test_only_fast_dllms_public_code_shifts_the_recomputed_rows():
    for name in ("prefix", "dual"):
        assert make_policy(name, as_shipped=True).settings() == {"as_shipped": True}
    with pytest.raises(ValueError, match="has no knob 'as_shipped'"):
        make_policy("window", as_shipped=True)


@pytest.mark.parametrize("gamma", [1.0, 1.01])
def test_only_a_gamma_above_one_refreshes_the_first_layer(gamma):
    """No drift is found before layer 0 has run, so otherwise only later layers refresh."""
    steps = run(small_model(55), PROMPTS, ("elastic", dict(beta=3, gamma=gamma)), gen_length=GEN)
    through = torch.stack([(step.parts & Part.MLP) > 0 for step in steps[1:]])  # (S,B,L,T)
    whole = torch.stack([step.before.own for step in steps[1:]])
    assert torch.equal(through[:, :, 2], whole), "hardly any two attentions are the same"
    assert torch.equal(through[:, :, 0], whole) is (gamma > 1)


NO_CACHE = [
    ("dllm", dict(kp=1, kr=1), 5),
    ("dllm", dict(kp=1, kr=1, rho=0.0), None),
    ("dllm", dict(kp=1, kr=50, rho=1.0), 5),
    ("dllm", dict(kp=1, kr=50, rho=1.0), None),
    ("prefix", {}, 1),
    ("dual", {}, 1),
    ("sparse", {}, 1),
    ("sparse", dict(keep_ratio=1.0), 1),
    ("elastic", dict(beta=GEN, gamma=2.0), None),
    ("elastic", dict(beta=GEN, gamma=2.0), 5),
    ("dkv", dict(reload=1), None),
    ("dkv", dict(reload=1), 5),
    ("window", dict(warmup=64), 5),
    ("window", dict(warmup=0, every=1), 5),
    ("window", dict(warmup=0, before=512, after=512), 5),
    ("d2", dict(current_k=64, rollout_p=1.0), None),
    ("d2", dict(current_k=64, rollout_p=1.0), 5),
]


@pytest.mark.parametrize("changes", FAMILIES, ids=["llada", "dream"])
@pytest.mark.parametrize(
    ("name", "knobs", "block_length"), NO_CACHE, ids=[f"{name_of(c)}-{c[2]}" for c in NO_CACHE]
)
def test_with_knobs_that_keep_nothing_it_is_no_cache(name, knobs, block_length, changes):
    model = small_model(52, **changes)
    settings = dict(decoder=THRESHOLD, gen_length=GEN, block_length=block_length)
    kept = run(model, PROMPTS, (name, knobs), **settings)
    plain = run(model, PROMPTS, "none", **settings)
    assert_same_confidence(confidences(kept), confidences(plain), 1e-9)
    for a, b in zip(kept, plain, strict=True):
        assert torch.equal(a.after.tokens, b.after.tokens)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] != "none" and c[1].get("gamma", 0) <= 1], ids=name_of
)
def test_with_other_knobs_what_is_kept_grows_stale(case):
    """A guard for every comparison with no cache."""
    model = small_model(52)
    settings = dict(gen_length=GEN, block_length=5)
    kept, plain = (run(model, PROMPTS, p, **settings) for p in (case, "none"))
    gap = 0.0
    for a, b in zip(kept, plain, strict=True):
        if not torch.equal(a.before.tokens, b.before.tokens):
            break
        seen = a.confidence > -torch.inf
        gap = max(gap, float((a.confidence - b.confidence)[seen].abs().max()))
    assert gap > 1e-3


@pytest.mark.parametrize("changes", FAMILIES, ids=["llada", "dream"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_no_more_rows_pass_a_layer_than_the_step_reports(case, changes):
    """Counted at the matrix products: a batch is as wide as its widest row."""
    passed = {"out_proj": [], "down_proj": []}
    model = small_model(8, **changes)
    for i, block in enumerate(model.blocks):
        for name, seen in passed.items():
            module = getattr(block, name)
            module.register_forward_hook(lambda _, x, y, i=i, seen=seen: seen.append((i, x[0])))
    for seed in (7, 11):
        prompts = [random_prompt(n, n + seed) for n in (5, 9, 7)]
        decoder = ("threshold", dict(threshold=0.3))
        for step in d2cache.generate(
            model,
            prompts,
            make_policy(case[0], **case[1]),
            d2cache.make_decoder(decoder[0], **decoder[1]),
            gen_length=GEN,
        ):
            parts = step.parts
            if parts is None:
                parts = torch.stack([step.rows.parts(i) for i in range(3)], dim=1)
            widths = dict.fromkeys(range(3), 0)
            for i in range(3):
                for b in where(step.before.live):
                    rows = where(parts[b, i] & THROUGH)
                    # a whole prompt passes with the padding to its left
                    padding = int(step.before.start[b]) if step.before.start[b] in rows else 0
                    widths[i] = max(widths[i], len(rows) + padding)
            for seen in passed.values():
                for i, x in seen:
                    assert x.shape[1] <= widths[i], f"step {step.index}, layer {i}"
                assert [i for i, _ in seen] == [i for i in range(3) if widths[i]]
                seen.clear()


def spoil(policy, model, clean, which):
    """Repeat the run, with 1e3 in the stores at which(step) (B,L,T) during each step.

    Yields the largest change of a confidence in each step.
    """
    steps = d2cache.generate(model, PROMPTS, policy, gen_length=GEN, block_length=5)
    next(steps)  # makes the stores
    for step in clean[1:]:
        stores, at = (policy.kv.k, policy.kv.v), which(step).transpose(0, 1)[:, :, None, :, None]
        with torch.inference_mode():
            saved = [store.clone() for store in stores]
            for store in stores:
                store.masked_fill_(at, 1e3)
            again = next(steps)
            for store, old in zip(stores, saved, strict=True):
                store.copy_(torch.where(at & (store == 1e3), old, store))
        seen = again.confidence > -torch.inf
        yield float((again.confidence - step.confidence)[seen].abs().max())


@pytest.mark.parametrize("changes", FAMILIES, ids=["llada", "dream"])
def test_evicted_keys_and_values_have_no_influence_and_kept_ones_have(changes):
    model = small_model(53, **changes)
    case = ("sparse", dict(keep_ratio=0.4))
    clean = run(model, PROMPTS, case, gen_length=GEN, block_length=5)

    def evicted(step):
        return (step.parts & Part.EVICTED) > 0

    assert sum(int(evicted(step).sum()) for step in clean) > 300, "guard"
    assert max(spoil(make_policy(case[0], **case[1]), model, clean, evicted)) < 1e-9
    for layer in range(3):

        def kept(step, layer=layer):
            mine = torch.zeros_like(step.parts, dtype=torch.bool)
            small = evicted(step).any(1).any(1)
            mine[small, layer] = ((step.parts == 0) & step.before.own[:, None])[small, layer]
            return mine

        gaps = list(spoil(make_policy(case[0], **case[1]), model, clean, kept))
        assert gaps[0] < 1e-9 and gaps[1] > 1e-2, "the first small step is the third"


def test_a_small_step_attends_to_fewer_keys():
    """Evicted keys are left out of the products, not only masked."""
    model, met = small_model(53), []
    for block in model.blocks:

        def attend(q, k, v, keys, do=block.attend):
            met.append(k.shape[2])
            return do(q, k, v, keys)

        block.attend = attend
    policy = make_policy("sparse", keep_ratio=0.4)
    small = 0
    for step in d2cache.generate(model, PROMPTS, policy, gen_length=GEN, block_length=4):
        if step.index % 4 >= 2:
            small += 1
            assert met == [int(0.4 * (21 - 4)) + 4] * 3  # of those outside the block, and it
        met.clear()
    assert small == 6


def test_unless_recomputed_in_full_the_first_layer_chooses_for_all():
    """V moves where its input moved: only rows that layer 0 recomputes move in the next layer.

    Layer 0 itself picks what was written, and fills up from the left.
    """
    model = small_model(54)
    for first_layer in (False, True):
        knobs, alike = dict(kp=50, kr=50, rho=0.5, first_layer=first_layer), []
        for step in run(model, PROMPTS, ("dllm", knobs), gen_length=GEN)[1:]:
            through = (step.parts & Part.MLP) > 0
            alike.append(bool((through[:, 1] == through[:, 2]).all()))
            if not first_layer:
                assert torch.equal(through[:, 0], through[:, 1]) and alike[-1]
                answer = where(step.before.own[0])[-GEN:]
                written = set(where(step.rows.new[0]))
                fill = [j for j in answer if j not in written][: GEN // 2 - len(written)]
                assert set(where(through[0, 0])) == written | set(fill)
        assert all(alike) is not first_layer
