"""What the tests share: small random models, and a forward pass independent of the engine.

Weights are far larger than a fresh model's, norms included: with small ones a wrong rotation or
a stale value moves no confidence far enough to be seen.
"""

from dataclasses import replace

import torch

import d2cache
from d2cache.canvas import Canvas
from d2cache.model import Model, ModelConfig
from d2cache.rows import Rows

SMALL = ModelConfig(
    layers=3,
    width=32,
    heads=4,
    kv_heads=4,
    mlp=48,
    vocab=60,
    rope_theta=100.0,
    norm_eps=1e-5,
    mask_id=59,
    eos_id=58,
    max_length=256,
    name="small",
)

# knobs under which a policy really caches; a policy not listed here runs with its defaults
KNOBS = {
    "d2": [
        dict(current_k=4, rollout_p=0.15, sigma=3.0),
        dict(current_k=2, rollout_p=0.3, sigma=3.0, inflate_w=3),
        dict(current_k=3, rollout_p=0.1, sigma=3.0, as_shipped=True),
    ],
    "dllm": [
        dict(kp=5, kr=3),
        dict(kp=4, kr=50, rho=0.5, first_layer=True),
        dict(kp=3, kr=4, rho=0.0),
    ],
    "dkv": [dict(reload=4)],
    "elastic": [dict(beta=3), dict(beta=4, gamma=0.99)],
    "sparse": [dict(keep_ratio=0.4)],
    "window": [dict(before=2, after=2, warmup=2), dict(before=1, after=0, warmup=0, every=3)],
}
POLICIES = [(p["name"], knobs) for p in d2cache.policies() for knobs in KNOBS.get(p["name"], [{}])]
# knobs under which a decoder's rule really acts on a random model
DECODER_KNOBS = {
    "threshold": dict(threshold=0.35),
    "factor": dict(factor=3.0),
    "eb": dict(gamma=1.0),
    "klass": dict(kl=1.0, threshold=0.3),
    "slowfast": dict(threshold=0.4, low=0.3, cycles=3),
    "wino": dict(wide_in=0.35, narrow_out=0.5),
}
DECODERS = [d["name"] for d in d2cache.decoders()]


def small_model(seed: int = 0, dtype=torch.float64, **changes) -> Model:
    """A random model; `changes` are fields of its ModelConfig."""
    model = Model(replace(SMALL, **changes)).to(dtype)
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=rng, dtype=torch.float64)
        scale = 1.0 if name == "embed.weight" else 0.4
        p.data.copy_(scale * noise + ("norm" in name))
    return model.requires_grad_(False).eval()


def random_prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 58, (length,), generator=torch.Generator().manual_seed(seed))


def with_end(model: Model, prompt, gen_length: int, **settings) -> Model:
    """The model with an end-of-text id that an ordinary run writes in the middle of its answer."""
    steps = run(model, prompt, "none", gen_length=gen_length, **settings)
    answer = steps[-1].after.tokens[0, len(prompt) :].tolist()
    first = {}
    for at, token in enumerate(answer):
        first.setdefault(token, at)
    token = min(first, key=lambda t: abs(first[t] - gen_length // 2))
    model.config = replace(model.config, eos_id=token)
    return model


def run(model, prompt, policy="none", decoder="confidence", **settings) -> list[d2cache.Step]:
    """All steps of a run. policy and decoder: an object, a name, or (name, knobs)."""
    if isinstance(policy, tuple):
        policy = d2cache.make_policy(policy[0], **policy[1])
    if isinstance(decoder, tuple):
        decoder = d2cache.make_decoder(decoder[0], **decoder[1])
    return list(d2cache.generate(model, prompt, policy, decoder, **settings))


def full_pass(model, tokens):
    """Logits (B,T,V) of every position of tokens (B,T)."""
    batch, length = tokens.shape
    every = torch.arange(length).expand(batch, -1)
    canvas = Canvas(tokens, torch.zeros(batch), 1, length, model.config.mask_id, 0)
    policy = d2cache.make_policy("none")
    policy.begin(model, canvas)
    whole = torch.ones_like(every).bool()
    rows = Rows(
        every,
        whole,
        every,
        every,
        every,
        keys=None,
        full=True,
        fresh=every,
        wanted=whole,
        new=whole,
    )
    return model(tokens, rows, policy)


def confidences(steps) -> torch.Tensor:
    """(S,B,T)."""
    return torch.stack([step.candidates.confidence for step in steps])


def assert_same_confidence(a: torch.Tensor, b: torch.Tensor, within: float):
    """Equal up to `within`, with -inf at the same positions."""
    assert a.shape == b.shape
    assert torch.equal(torch.isneginf(a), torch.isneginf(b)), "-inf at different positions"
    seen = ~torch.isneginf(a)
    assert (a[seen] - b[seen]).abs().max() <= within


class Reference:
    """One row's keys and values, (L,T,Hkv,D), and a pass of some positions over them.

    Written from the papers alone: rotation as a product of complex numbers, attention head by
    head, no function of the engine.
    """

    def __init__(self, model: Model, length: int):
        c = self.config = model.config
        self.weight = dict(model.named_parameters())
        self.head_width = c.width // c.heads
        shape = (c.layers, length, c.kv_heads, self.head_width)
        self.k, self.v = (
            torch.zeros(shape, dtype=torch.float64),
            torch.zeros(shape, dtype=torch.float64),
        )

    def norm(self, x, name):
        scale = (x * x).mean(-1, keepdim=True) + self.config.norm_eps
        return x / scale**0.5 * self.weight[name]

    def turn(self, x, position):
        """x (R,H,D) rotated by its positions (R,)."""
        half = self.head_width // 2
        speed = self.config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        turned = torch.complex(x[..., :half], x[..., half:])
        turned = turned * torch.exp(1j * position[:, None] * speed)[:, None]
        return torch.cat((turned.real, turned.imag), dim=-1)

    def forward(self, tokens, rows, start: int = 0):
        """tokens (T,), rows (R,) -> logits (R,V) and a head-averaged map (R,T) per layer."""
        c, w, d = self.config, self.weight, self.head_width
        x, maps = w["embed.weight"][tokens[rows]], []
        for i in range(c.layers):
            layer = f"blocks.{i}."
            y = self.norm(x, layer + "attn_norm.weight")
            wq, wk, wv = w[layer + "qkv_proj.weight"].split([c.width] + [c.kv_heads * d] * 2)
            bias = w.get(layer + "qkv_proj.bias", torch.zeros(c.width + 2 * c.kv_heads * d))
            bq, bk, bv = bias.split([c.width] + [c.kv_heads * d] * 2)
            q = self.turn((y @ wq.T + bq).view(-1, c.heads, d), rows - start)
            self.k[i, rows] = self.turn((y @ wk.T + bk).view(-1, c.kv_heads, d), rows - start)
            self.v[i, rows] = (y @ wv.T + bv).view(-1, c.kv_heads, d)
            heads, total = [], 0
            for h in range(c.heads):
                shared = h * c.kv_heads // c.heads
                score = q[:, h] @ self.k[i, start:, shared].T / d**0.5
                share = score.exp() / score.exp().sum(-1, keepdim=True)
                heads.append(share @ self.v[i, start:, shared])
                total = total + share / c.heads
            maps.append(torch.nn.functional.pad(total, (start, 0)))
            x = x + torch.cat(heads, dim=-1) @ w[layer + "out_proj.weight"].T
            y = self.norm(x, layer + "mlp_norm.weight")
            gate, up = (y @ w[layer + "gate_up_proj.weight"].T).split(c.mlp, dim=-1)
            x = x + (gate / (1 + (-gate).exp()) * up) @ w[layer + "down_proj.weight"].T
        return self.norm(x, "norm.weight") @ w["head.weight"].T, maps


def confidence_of(logits, mask_id: int):
    """logits (..,V) -> token and probability of the likeliest that is not [MASK]."""
    logits = logits.clone()
    logits[..., mask_id] = -torch.inf
    share = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return share.argmax(-1), share.max(-1).values


def naive_density(known, sigma: float):
    """d2Cache Eq. 3 as a double loop, divided by the mass of the whole window."""
    length = len(known)

    def window(lag):
        return torch.exp(torch.tensor(-(lag**2) / (2 * sigma**2), dtype=torch.float64)).item()

    whole = sum(window(lag) for lag in range(-20 * int(sigma + 1), 20 * int(sigma + 1) + 1))
    return [sum(window(i - j) for j in range(length) if known[j]) / whole for i in range(length)]
