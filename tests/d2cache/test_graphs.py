"""The loop of graphs against the plain loop.

Without a GPU nothing is captured, and each step runs from Python; but over state at fixed
addresses, with row counts rounded up, through the same functions.
"""

import sys
from dataclasses import dataclass

import pytest
import torch
from lab import DECODER_KNOBS, DECODERS, POLICIES, full_pass, random_prompt, small_model

import d2cache
from d2cache.graphs.arena import ARENAS, Arena
from d2cache.graphs.canvas import TracedStep
from d2cache.graphs.packed_step import PackedStep
from d2cache.graphs.support import attend_can_wait, stored_by_rows
from d2cache.graphs.work import UNCAPTURABLE, GraphWork, bucket
from d2cache.policies import CachePolicy
from d2cache.quantize import to_fp8

loop = sys.modules["d2cache.generate"]  # the package's name of it is the function


class Traced(GraphWork):
    captures = False


@pytest.fixture
def traced(monkeypatch):
    """generate(..., eager=False) goes through `GraphWork`; -> steps that did so."""
    ARENAS.clear()
    UNCAPTURABLE.clear()
    worker = loop._worker
    monkeypatch.setattr(
        loop, "_worker", lambda m, p, eager: worker(m, p, eager) if eager else Traced
    )
    made, unpack = [], PackedStep.unpack
    monkeypatch.setattr(
        PackedStep, "unpack", lambda self, *a: made.append(unpack(self, *a)) or made[-1]
    )
    return made


def both(model, prompt, policy, decoder, **settings):
    """(plain steps, steps by graphs)."""
    runs = []
    for eager in (True, False):
        policies, decoders = d2cache.make_policy(policy[0], **policy[1]), None
        decoders = d2cache.make_decoder(decoder[0], **decoder[1])
        runs.append(
            list(d2cache.generate(model, prompt, policies, decoders, eager=eager, **settings))
        )
    return runs


def same(plain, fast):
    assert len(plain) == len(fast)
    for a, b in zip(plain, fast, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.before.tokens, b.before.tokens)
        for name in ("why", "work", "recomputed", "predicted", "accepted", "changed", "written"):
            assert torch.equal(getattr(a, name), getattr(b, name)), (a.index, name)
        assert (a.index, a.shadow, a.after.step) == (b.index, b.shadow, b.after.step)
        for name in ("rollout", "parts"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or torch.allclose(x.double(), y.double(), atol=1e-4)
        finite = a.confidence > -torch.inf
        assert torch.equal(finite, b.confidence > -torch.inf)
        assert torch.allclose(a.confidence[finite], b.confidence[finite])


PROMPTS = [random_prompt(9, 1), random_prompt(5, 2)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
@pytest.mark.parametrize("shift", [0, 1])
def test_every_policy(traced, policy, shift):
    model = small_model(shift=shift)
    for prompt in (PROMPTS[0], PROMPTS):
        settings = dict(gen_length=24, block_length=8)
        plain, fast = both(model, prompt, policy, ("confidence", {}), **settings)
        same(plain, fast)
    assert not UNCAPTURABLE and len(traced) >= len(fast) - 1


STATEFUL = [("d2", dict(current_k=4, sigma=3.0)), ("elastic", dict(beta=4, gamma=0.97))]


@pytest.mark.parametrize("policy", STATEFUL, ids=lambda p: p[0])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_decoder(traced, policy, decoder, temperature):
    knobs = DECODER_KNOBS.get(decoder, {}) | dict(temperature=temperature, tokens_per_step=2)
    settings = dict(gen_length=24, block_length=12, seed=(3, 4), stop_at_eos=True)
    same(*both(small_model(), PROMPTS, policy, (decoder, knobs), **settings))


@pytest.mark.parametrize("policy", ["none", "d2", "dllm", "dual"])
def test_weights_in_8_bits(traced, policy):
    model = small_model(vocab=64, mask_id=63, qkv_bias=True)
    to_fp8(model)
    settings = dict(gen_length=24, block_length=8)
    same(*both(model, PROMPTS[0], (policy, {}), ("confidence", {}), **settings))
    assert traced


def test_what_runs_by_graphs(traced):
    """Every policy's steps can be captured."""
    for policy, knobs in POLICIES:
        both(small_model(), PROMPTS[0], (policy, knobs), ("confidence", {}), gen_length=16)
    assert not UNCAPTURABLE


@pytest.fixture
def starts(monkeypatch):
    """The layer that each read-back gave to restart from."""
    read, found = Arena.read_restart, []
    monkeypatch.setattr(Arena, "read_restart", lambda self: found.append(read(self)) or found[-1])
    return found


@pytest.mark.parametrize("gamma", [0.5, 0.97, 0.999, 1.5])
@pytest.mark.parametrize("prompts", [PROMPTS[0], PROMPTS], ids=["one", "two"])
def test_elastic_asks_once_a_step_where_to_start_again(traced, starts, gamma, prompts):
    model, policy = small_model(layers=5), ("elastic", dict(beta=4, gamma=gamma))
    plain, fast = both(model, prompts, policy, ("confidence", {}), gen_length=24)
    same(plain, fast)
    assert not UNCAPTURABLE and len(traced) == len(fast) - 1
    if gamma > 1:  # every step is a full pass
        assert not starts
        return
    assert len(starts) == len(fast) - 1, "the first step is a full pass, without graphs"
    if gamma == 0.97:
        assert len(set(starts)) > 2, "guard: it must start again from several layers"


def test_a_refresh_that_fails_goes_on_plainly(traced, starts, monkeypatch):
    """As if a GPU ran out of memory in the middle of it."""
    model, policy = small_model(layers=5), ("elastic", dict(beta=4, gamma=0.97))
    refresh, calls = type(d2cache.make_policy("elastic")).refresh, []

    def failing(self, i, *rest):
        made = refresh(self, i, *rest)
        calls.append(i)
        if starts and calls.count(4) == 3 and not UNCAPTURABLE:
            raise RuntimeError("no room")
        return made

    plain, _ = both(model, PROMPTS, policy, ("confidence", {}), gen_length=24)
    monkeypatch.setattr(type(d2cache.make_policy("elastic")), "refresh", failing)
    starts.clear(), calls.clear(), traced.clear()
    elastic = d2cache.make_policy(policy[0], **policy[1])
    same(plain, list(d2cache.generate(model, PROMPTS, elastic, gen_length=24, eager=False)))
    assert UNCAPTURABLE == {("elastic", "confidence"): "no room"} and traced


def test_an_arena_serves_the_next_run(traced):
    model, policy = small_model(), ("dkv", dict(reload=4))
    for seed in (1, 2, 3):
        prompt = random_prompt(9, seed)
        same(*both(model, prompt, policy, ("confidence", {}), gen_length=16))
    assert len(ARENAS[model]) == 1


def test_two_runs_at_once_do_not_share_an_arena(traced):
    model = small_model()
    make = lambda seed: d2cache.generate(
        model, random_prompt(9, seed), "d2", gen_length=16, eager=False
    )
    alone = [[step.tokens for step in make(seed)] for seed in (1, 2)]
    pairs = list(zip(make(1), make(2), strict=True))
    for at, pair in enumerate(pairs):
        for seed, step in enumerate(pair):
            assert torch.equal(step.tokens, alone[seed][at])


def test_a_step_keeps_what_it_saw(traced):
    """Later steps overwrite the buffers of graphs, never a step that was yielded."""
    model, kept = small_model(), []
    for step in d2cache.generate(model, PROMPTS[0], "d2", gen_length=16, eager=False):
        kept.append((step, step.tokens.clone(), step.logits.clone(), step.why.clone()))
    for step, tokens, logits, why in kept:
        assert torch.equal(step.tokens, tokens) and torch.equal(step.logits, logits)
        assert torch.equal(step.why, why)


def test_a_trace_is_the_same(traced):
    traces = [
        d2cache.Trace.record(
            d2cache.generate(small_model(), PROMPTS[0], "d2", gen_length=16, eager=eager)
        )
        for eager in (True, False)
    ]
    assert (traces[0].tokens == traces[1].tokens).all()
    assert (traces[0].candidates == traces[1].candidates).all()
    assert traces[0].totals["flops"] == traces[1].totals["flops"]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 127, 129, 300, 1023, 5000])
def test_buckets(count):
    size = bucket(count, 4096)
    assert size >= min(count, 4096) and bucket(size, 4096) == size
    assert count < 64 or size <= max(count * 1.25, count + 16) or size == 4096
    assert bucket(count, 100) <= 100


def test_tests_of_the_step_choose_the_graph():
    arena = type("Owner", (), {"step": 6, "guard": Arena.guard, "guards": []})()
    arena.guards = []
    number = TracedStep(arena, lambda step: step)
    assert number % 3 == 0 and (number + 1) % 3 != 0 and not number < 4 and number
    answers = lambda step: [q(step) == a for q, a in arena.guards]
    assert all(answers(9)) and not all(answers(7)) and not all(answers(3))
    with pytest.raises(TypeError):
        torch.zeros(2) + number


def thrice(policy, decoder, prompts, **settings):
    """On a GPU: the third run replays what the first two captured."""
    ARENAS.clear()
    UNCAPTURABLE.clear()
    model = small_model(dtype=torch.float64).to("cuda")
    for prompt in prompts:
        same(*both(model, prompt, policy, decoder, **settings))
    return [e for a in ARENAS.get(model, []) for known in a.entries.values() for e in known]


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
@pytest.mark.parametrize("batch", [1, 2])
def test_captured_on_a_gpu(policy, batch):
    """float64 on the device: replayed graphs write the tokens of the plain loop."""
    prompts = [random_prompt(9, seed) for seed in (1, 2, 3)]
    if batch == 2:
        prompts = [[prompt, prompt[:5]] for prompt in prompts]
    settings = dict(gen_length=24, block_length=8)
    entries = thrice(policy, ("confidence", {}), prompts, **settings)
    assert not UNCAPTURABLE and any(e.graph is not None for e in entries)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", STATEFUL, ids=lambda p: p[0])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_decoders_captured_on_a_gpu(policy, decoder, temperature):
    knobs = DECODER_KNOBS.get(decoder, {}) | dict(temperature=temperature, tokens_per_step=2)
    settings = dict(gen_length=24, block_length=12, seed=(3, 4), stop_at_eos=True)
    thrice(policy, (decoder, knobs), [PROMPTS] * 3, **settings)


def test_a_class_says_beside_its_attention_that_it_can_wait(monkeypatch):
    monkeypatch.setattr(CachePolicy, "registry", dict(CachePolicy.registry))

    @dataclass
    class Other(type(d2cache.make_policy("d2")), key="other"):
        """Inherits d2's flag, not its attention."""

        def attend(self, i, block, q, k, v, rows):
            return block.attend(q, v, k, rows.keys)

    found = {p["name"]: attend_can_wait(d2cache.make_policy(p["name"])) for p in d2cache.policies()}
    assert found["none"] and found["dual"] and found["d2"]
    assert not found["sparse"] and not found["other"]


def test_weights_that_the_kernel_of_all_layers_can_read():
    block = small_model(dtype=torch.float32).blocks[0]
    assert stored_by_rows(block)
    weight = block.down_proj.weight
    weight.data = weight.data.t().contiguous().t()  # the layout for fast products on a CPU
    assert not stored_by_rows(block)


def near_a_full_pass(model, policy, prompts) -> None:
    """Each step of a policy that recomputes every row has the logits of a plain full pass over the
    canvas before it; and graphs were replayed."""
    ARENAS.clear()
    UNCAPTURABLE.clear()
    for seed in (1, 2):
        prompt = torch.stack([random_prompt(9, seed + i) for i in range(prompts)])
        for step in d2cache.generate(model, prompt, policy(), gen_length=24, eager=False):
            with torch.inference_mode(), torch.device("cuda"):
                wanted = full_pass(model, step.before.tokens)
            at = step.rows.target[..., None].expand_as(step.logits)
            finite = torch.arange(64, device="cuda") != 63
            wanted, got = (t.float()[..., finite] for t in (wanted.gather(1, at), step.logits))
            assert (got - wanted).norm() < 0.12 * wanted.norm(), step.index
    assert not UNCAPTURABLE
    found = [e for a in ARENAS[model] for known in a.entries.values() for e in known]
    assert any(e.graph is not None for e in found)


def narrow_model(kind=None, **sizes):
    """bfloat16, where the kernels are used."""
    model = small_model(dtype=torch.bfloat16, vocab=64, mask_id=63, **sizes)
    for name, weight in model.named_parameters():
        if "proj.weight" in name:
            # or the layers magnify the rounding to 8 bits to a third of the logits
            weight.data *= 0.25
    model = model.to("cuda")
    if kind:
        to_fp8(model)
    return model


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [None, "fp8"])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_kernels_captured_on_a_gpu(kind, qkv_bias):
    model = narrow_model(kind, width=64, qkv_bias=qkv_bias)
    near_a_full_pass(model, lambda: d2cache.make_policy("none"), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("wide", [32, 256], ids=["between-products", "chained"])
@pytest.mark.parametrize("prompts", [1, 2])
def test_elastic_by_kernels_on_a_gpu(wide, prompts):
    """bfloat16: its K, V are those of the plain loop, and a window of all masks whose layers all
    drift has the logits of a full pass."""
    heads = dict(width=wide, heads=4, kv_heads=4, mlp=192)
    model = narrow_model(**heads)
    drifting = lambda: d2cache.make_policy("elastic", beta=64, gamma=1.5)
    near_a_full_pass(model, drifting, prompts)
    prompt = [random_prompt(9, 1), random_prompt(5, 2)][:prompts]
    for gamma in (0.0, 0.97):
        first = []
        for eager in (True, False, False, False):
            policy = d2cache.make_policy("elastic", beta=4, gamma=gamma)
            steps = d2cache.generate(model, prompt, policy, gen_length=24, eager=eager)
            for step in steps:
                first.append((step.index, policy.seen.clone(), policy.kv.k.clone()))
                if step.index == 1:  # later on, another rounding may write another token
                    break
            steps.close()
        runs = [first[i] for i in range(1, len(first), 2)]
        for _, seen, keys in runs[1:]:
            for got, wanted in ((seen, runs[0][1]), (keys, runs[0][2])):
                assert (got.float() - wanted.float()).norm() < 0.05 * wanted.float().norm()
    assert not UNCAPTURABLE


@pytest.mark.gpu
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("kind", ["none", "d2", "peeking"])
def test_chained_on_a_gpu(monkeypatch, kind, prompts):
    """Everything between two attentions in one kernel; all layers where attention can wait."""
    from d2cache import kernels
    from d2cache.kernels.chain import multiprocessors_of

    if not multiprocessors_of(torch.device("cuda", 0)):
        pytest.skip("needs a chip of compute capability 9.0")
    links = set()
    chain = kernels.chain

    def noted(room, blocks, first, last, *rest):
        links.add((first, last))
        return chain(room, blocks, first, last, *rest)

    monkeypatch.setattr(kernels, "chain", noted)
    monkeypatch.setattr(CachePolicy, "registry", dict(CachePolicy.registry))

    @dataclass
    class Peeking(CachePolicy, key="peeking"):
        """Uses the queries before it passes them on."""

        def attend(self, i, block, q, k, v, rows):
            return block.attend(q.clone(), k, v, rows.keys)

    model = narrow_model(width=256, heads=4, kv_heads=4, mlp=192)
    knobs = dict(rollout_p=1.0) if kind == "d2" else {}  # all rows
    policy = lambda: d2cache.make_policy(kind, **knobs)
    near_a_full_pass(model, policy, prompts)
    many = model.config.layers
    alone = {(i, i) for i in range(many + 1)}
    assert links == ({(0, many)} if prompts == 1 and kind != "peeking" else alone)
