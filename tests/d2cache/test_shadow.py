"""WINO's shadow block against one long sequence with an explicit mask."""

from dataclasses import dataclass, field

import pytest
import torch
from lab import POLICIES, SMALL, Reference, random_prompt, run, small_model

import d2cache
from d2cache.canvas import Canvas
from d2cache.decoders.confidence import Confidence
from d2cache.decoders.wino import WideInNarrowOut
from d2cache.generate import open_canvas
from d2cache.policies import KV
from d2cache.shadow import Shadow
from d2cache.work import gather_rows

LENGTHS = (6, 3, 5)
SHAPES = [dict(), dict(shift=1, kv_heads=2, qkv_bias=True)]  # LLaDA's and Dream's
EAGER = dict(wide_in=0.25, narrow_out=0.9)


class Whole(Reference):
    """The lab's forward pass over a sequence in which every row has its own keys and position."""

    def logits(self, tokens, position, sees):
        """tokens and position (N,), sees (N,N) bool -> logits (N,V)."""
        c, w, d = self.config, self.weight, self.head_width
        x = w["embed.weight"][tokens]
        for i in range(c.layers):
            layer = f"blocks.{i}."
            y = self.norm(x, layer + "attn_norm.weight") @ w[layer + "qkv_proj.weight"].T
            y = y + w.get(layer + "qkv_proj.bias", torch.zeros(y.shape[1]))
            q, k, v = y.split([c.width] + [c.kv_heads * d] * 2, dim=1)
            q = self.turn(q.view(-1, c.heads, d), position)
            k = self.turn(k.reshape(-1, c.kv_heads, d), position)
            v = v.reshape(-1, c.kv_heads, d)
            heads = []
            for h in range(c.heads):
                shared = h * c.kv_heads // c.heads
                share = (q[:, h] @ k[:, shared].T / d**0.5).exp() * sees
                heads.append(share / share.sum(1, keepdim=True) @ v[:, shared])
            x = x + torch.cat(heads, dim=1) @ w[layer + "out_proj.weight"].T
            y = self.norm(x, layer + "mlp_norm.weight")
            gate, up = (y @ w[layer + "gate_up_proj.weight"].T).split(c.mlp, dim=1)
            x = x + (gate / (1 + (-gate).exp()) * up) @ w[layer + "down_proj.weight"].T
        return self.norm(x, "norm.weight") @ w["head.weight"].T


def second_look(model, canvas: Canvas, b: int) -> dict[int, float]:
    """Probability of each written token of row b's current block, from canvas and shadow in one."""
    start, first, shift = int(canvas.start[b]), canvas.prompt_length, model.config.shift
    tokens = canvas.tokens[b, start:]  # without padding
    first, length = first - start, len(tokens)
    masked = [j for j in range(first, length) if tokens[j] == canvas.mask_id]
    if not masked:
        return {}
    low = first + (masked[0] - first) // canvas.block_length * canvas.block_length
    block = list(range(low, min(low + canvas.block_length, length)))
    sees = torch.zeros(length + len(block), length + len(block), dtype=torch.bool)
    sees[:length, :length] = True  # the canvas sees the canvas
    sees[length:] = True  # the shadow sees everything
    for i, j in enumerate(block):
        sees[length + i, j] = False  # except the token that it predicts
    shadow = torch.full((len(block),), canvas.mask_id)
    position = torch.tensor([*range(length), *(j - shift for j in block)])
    logits = Whole(model, 1).logits(torch.cat((tokens, shadow)), position, sees)[length:]
    logits[:, canvas.mask_id] = -torch.inf
    share = logits.softmax(1)
    return {
        start + j: float(share[i, tokens[j]])
        for i, j in enumerate(block)
        if tokens[j] != canvas.mask_id
    }


@dataclass
class Watched(WideInNarrowOut):
    """WINO, and what it saw at each step."""

    seen: list = field(default_factory=list)

    def revise(self, canvas, accepted, shadow):
        doubted = super().revise(canvas, accepted, shadow)
        self.seen.append((shadow.probability(), doubted))
        return doubted


@pytest.mark.parametrize("shape", SHAPES, ids=["llada", "dream"])
@pytest.mark.parametrize("gen_length", [10, 11, 13])  # the last block: 5, 1 and 3 positions
def test_the_shadow_is_one_forward_pass_over_canvas_and_masks(shape, gen_length):
    compared, ended_early = [], False
    for seed in range(2):
        model, prompts = small_model(seed, **shape), [random_prompt(n, n) for n in LENGTHS]
        watched = Watched(**EAGER)
        steps = run(model, prompts, "none", watched, gen_length=gen_length, block_length=5)
        for step, (share, _) in zip(steps, watched.seen, strict=True):
            assert step.shadow == 5 and share.dtype == torch.float64
            ended_early |= bool((~step.before.live).any())
            for b in range(3):
                want = second_look(model, step.before, b)
                known = torch.full_like(share[b], torch.inf)
                for j, value in want.items():
                    known[j] = value
                assert torch.equal(known == torch.inf, share[b] == torch.inf)
                torch.testing.assert_close(share[b], known, rtol=0, atol=1e-10)
                compared += [(j - 6) // 5 for j in want]
    last = (gen_length - 1) // 5
    assert gen_length % 5 == 1 or compared.count(last) > 3, "guard: the last block is compared"
    assert len(compared) > 40 and ended_early


@pytest.mark.parametrize("shape", SHAPES, ids=["llada", "dream"])
def test_the_probability_of_a_token_does_not_depend_on_it(shape):
    """In one layer nothing else sees it: over all tokens that may be there, the probabilities are
    one distribution."""
    model = small_model(3, layers=1, **shape)
    tokens = torch.full((SMALL.mask_id, 11), SMALL.mask_id)
    tokens[:, :8] = random_prompt(8, 1)
    for j in (5, 7):
        each = tokens.clone()
        each[:, j] = torch.arange(len(each))
        start = torch.zeros(len(each), dtype=torch.int64)
        canvas = Canvas(each, start, 5, 6, SMALL.mask_id, SMALL.eos_id)
        policy = d2cache.make_policy("none")
        policy.begin(model, canvas)
        rows = gather_rows(
            canvas, policy.plan(canvas), model.config.shift, torch.tensor(False), policy.kv.ids
        )
        model(canvas.tokens, rows, policy)
        share = Shadow(model, policy.kv, canvas).probability()
        assert abs(float(share[:, j].sum()) - 1) < 1e-10 and share[:, j].max() > 0.1
        other = 12 - j
        spread = share[:, other].max() / share[:, other].min()
        assert spread > 1.5, "guard: the other written token's probability depends on it"


@dataclass
class Looks(Confidence):
    """Asks for the shadow pass and changes nothing."""

    def revise(self, canvas, accepted, shadow):
        self.share = shadow.probability()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(f"{x}" for x in p))
@pytest.mark.parametrize("shape", SHAPES, ids=["llada", "dream"])
def test_the_shadow_pass_changes_nothing_on_the_canvas(policy, shape):
    """No row of the canvas sees the shadow, at this step or, through a cache, at a later one."""
    model, prompts = small_model(2, **shape), [random_prompt(n, n) for n in LENGTHS]
    settings = dict(gen_length=8, block_length=3)
    plain = run(model, prompts, policy, "confidence", **settings)
    looks = Looks()
    looked = []
    steps = d2cache.generate(
        model, prompts, d2cache.make_policy(policy[0], **policy[1]), looks, **settings
    )
    for step in steps:
        looked.append(step)
        written = step.before.block & (step.before.tokens != SMALL.mask_id)
        written &= step.before.position >= step.before.prompt_length
        assert torch.equal(looks.share < torch.inf, written)
        assert ((looks.share[written] >= 0) & (looks.share[written] <= 1)).all()
    for one, other in zip(plain, looked, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.tokens, other.tokens)
        assert one.shadow == 0 and other.shadow == 3


def test_the_shadow_pass_is_on_the_device_of_the_model():
    """The device "meta" has shapes but no numbers, and cannot be mixed with other devices."""
    model = small_model(shift=1).to("meta")
    canvas = open_canvas(model, [[1, 2, 3], [4, 5, 6]], 7, 4)
    shadow = Shadow(model, KV(model, 2, 10), canvas)
    share = shadow.probability()
    assert share.shape == (2, 10) and share.device.type == "meta" and shadow.rows == 4


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(f"{x}" for x in p))
@pytest.mark.parametrize("shape", SHAPES, ids=["llada", "dream"])
def test_wino_masks_again_only_what_it_wrote_and_still_gains(policy, shape):
    again, changed_mind = 0, 0
    for seed in range(3):
        model, prompts = small_model(seed, **shape), [random_prompt(n, n) for n in LENGTHS]
        watched = Watched(**EAGER)
        made = d2cache.make_policy(policy[0], **policy[1])
        steps = list(d2cache.generate(model, prompts, made, watched, gen_length=13, block_length=8))
        lost = {}  # (row, position) -> token that was masked again
        for step, (share, doubted) in zip(steps, watched.seen, strict=True):
            before, after = step.before, step.after
            mask = before.mask_id
            back = (before.tokens != mask) & (after.tokens == mask)
            assert (doubted is None) == (step.index == 0)
            assert torch.equal(back, back & False if doubted is None else doubted)
            may = before.block & (before.position >= before.prompt_length) & ~before.masked
            assert not (back & ~may).any(), "prompt, other blocks and masks stay as they are"
            gained = step.accepted.sum(1) - back.sum(1)
            assert (gained[before.live] > 0).all() and not gained[~before.live].any()
            assert torch.equal(after.masked.sum(1), before.masked.sum(1) - gained)
            if doubted is not None:
                for b in range(3):
                    low = [j for j in range(len(share[b])) if share[b, j] < EAGER["narrow_out"]]
                    room = max(int(step.accepted[b].sum()) - 1, 0)
                    low = sorted(low, key=share[b].tolist().__getitem__)[:room]
                    assert back[b].nonzero().flatten().tolist() == sorted(low)
            for b, j in step.accepted.nonzero().tolist():
                changed_mind += int(after.tokens[b, j]) != lost.get((b, j), int(after.tokens[b, j]))
            for b, j in back.nonzero().tolist():
                lost[b, j] = int(before.tokens[b, j])
            again += int(back.sum())
        end = steps[-1].after
        assert not end.masked.any()
        for b, prompt in enumerate(prompts):
            assert torch.equal(end.tokens[b, end.start[b] : end.prompt_length], prompt)
    assert again, "guard: tokens are masked again"
    assert changed_mind or policy[0] != "none", "guard: and may be written differently"
