"""The transformer: public reference code's numbers, and a second forward written in the tests."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import golden
from lab import (
    SMALL,
    Reference,
    assert_same_confidence,
    confidence_of,
    confidences,
    full_pass,
    random_prompt,
    run,
    small_model,
)
from torch.utils._python_dispatch import TorchDispatchMode

import d2cache
from d2cache.families import FAMILIES
from d2cache.model import CONFIGS, Linear, Model, ModelConfig
from d2cache.weights import parameter_names

RUNS = [
    (family, name)
    for family in FAMILIES
    for name in (
        "none_block32",
        "none_block16",
        "none_prior10",
        "none_k2",
        "none_threshold",
        "none_margin",
        "prefix",
        "dual",
        "dllm_8_4_25",
        "dllm_1_1",
        "d2_as_shipped",
        "d2_as_shipped_inflate4",
    )
]


@functools.cache
def golden_model(family: str):
    """Settings, tensors, and the model of a family's golden file."""
    meta, tensors = golden(family)
    same = "layers width heads kv_heads mlp vocab rope_theta mask_id eos_id".split()
    config = ModelConfig(
        **{k: meta[k] for k in same}, norm_eps=meta["rms_norm_eps"], **FAMILIES[family].fields
    )
    model = Model(config)
    names = parameter_names(model.config)
    model.load_state_dict(
        {o: torch.cat([tensors[f"weights/{n}"] for n in ns]) for o, ns in names.items()}
    )
    return meta, tensors, model.requires_grad_(False)


@pytest.mark.parametrize("which", ["all_masked", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_public_code(family, which):
    meta, tensors, model = golden_model(family)
    logits = full_pass(model, tensors[f"forward/{which}/tokens"])
    want = tensors[f"forward/{which}/logits"]
    kept = torch.arange(meta["vocab"]) != meta["mask_id"]
    torch.testing.assert_close(logits[..., kept], want[..., kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "name"), RUNS)
def test_runs_are_those_of_the_public_d2cache_code(family, name):
    meta, tensors, model = golden_model(family)
    want, p = meta["runs"][name], meta["prompt_length"]
    knobs = dict(sigma=want.get("sigma", 0.0), as_shipped=want["cache"] == "none")
    if "threshold" in want:
        decoder = d2cache.make_decoder("threshold", threshold=want["threshold"], **knobs)
    else:
        rule = "margin" if want.get("alg") == "topk_margin" else "confidence"
        written = want.get("num_transfer_tokens", 1)
        decoder = d2cache.make_decoder(rule, tokens_per_step=written, **knobs)
    settings = {
        "d2": lambda: dict(
            current_k=want["current_k"],
            rollout_p=want["rollout_p"],
            sigma=want["cache_sigma"],
            inflate_w=want["inflate_w"],
            as_shipped=True,
        ),
        "dllm": lambda: dict(kp=want["kp"], kr=want["kr"], rho=want["rou"], first_layer=True),
        "prefix": lambda: dict(as_shipped=True),
        "dual": lambda: dict(as_shipped=True),
    }.get(want["cache"], dict)
    policy = d2cache.make_policy(want["cache"], **settings())
    prompt = tensors["forward/all_masked/tokens"][0, :p]
    trace = d2cache.Trace.record(
        d2cache.generate(
            model,
            prompt,
            policy,
            decoder,
            gen_length=meta["gen_length"],
            block_length=want["block_len"],
        )
    )
    saved = {
        k.split("/")[-1]: t.clone() for k, t in tensors.items() if k.startswith(f"runs/{name}/")
    }
    assert trace.tokens[-1, p:].tolist() == saved["tokens"].tolist()
    assert trace.step_of_token.tolist() == saved["step_of_token"].tolist()
    if want["cache"] == "dllm":  # its rows differ from layer to layer; layer 0 has all of them
        assert saved["recomputed"].all() and trace.recomputed_by_layer[:, 0].all()
        assert want["kp"] == 1 or not trace.recomputed_by_layer[:, 1].all()
    else:
        assert torch.equal(torch.from_numpy(trace.recomputed), saved["recomputed"])
    if name == "dual":  # the public code reads 1/V where it computed nothing; that is no prediction
        row = p - model.config.shift
        unseen = ~saved["recomputed"][:, row : row + meta["gen_length"]]
        blank = saved["confidence"][unseen]
        assert torch.all((blank == -torch.inf) | (blank == 1 / meta["vocab"]))
        saved["confidence"][unseen] = -torch.inf
    assert_same_confidence(torch.from_numpy(trace.confidence), saved["confidence"], 1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 2}, {"kv_heads": 1, "qkv_bias": True}, {"width": 48}]
)
@pytest.mark.parametrize("block_length", [None, 5])
def test_no_cache_is_the_plain_forward_at_every_step(changes, block_length):
    model, p, gen = small_model(1, **changes), 7, 14
    canvas = torch.cat((random_prompt(p, 1), torch.full((gen,), SMALL.mask_id)))
    steps = run(
        model,
        canvas[:p],
        decoder=("confidence", {"sigma": 0.0}),
        gen_length=gen,
        block_length=block_length,
    )
    assert len(steps) == gen
    for step in steps:
        masked = canvas == SMALL.mask_id
        logits, _ = Reference(model, len(canvas)).forward(canvas, torch.arange(len(canvas)))
        token, share = confidence_of(logits, SMALL.mask_id)
        share[~masked] = -torch.inf
        assert_same_confidence(step.candidates.confidence[0], share, 1e-10)
        first = int(masked.nonzero()[0]) - p
        size = block_length or gen
        end = p + (first // size + 1) * size
        best = int(share[:end].argmax())
        canvas[best] = token[best]
        assert torch.equal(step.after.tokens[0], canvas)


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2, "qkv_bias": True}])
@pytest.mark.parametrize(
    "policy",
    [p for p in d2cache.policies() if p["name"] in ("none", "d2")],
    ids=lambda p: p["name"],
)
def test_each_row_of_a_padded_batch_is_the_plain_forward_over_its_own_cache(changes, policy):
    """Rotation by own position, keys without padding, values refreshed, head rows aligned."""
    model = small_model(2, **changes)
    prompts = [random_prompt(n, n) for n in (4, 9, 6)]
    knobs = dict(current_k=3, rollout_p=0.2, inflate_w=3) if policy["name"] == "d2" else {}
    made = d2cache.make_policy(policy["name"], **knobs)
    length = 9 + 12
    caches = [Reference(model, length) for _ in prompts]
    for step in d2cache.generate(model, prompts, made, gen_length=12, block_length=6):
        for b, cache in enumerate(caches):
            start = 9 - len(prompts[b])
            rows = step.rows.index[b][step.rows.valid[b]]
            assert len(set(rows.tolist())) == len(rows) and rows.min() >= start
            logits, maps = cache.forward(step.before.tokens[b], rows, start)
            _, share = confidence_of(logits, SMALL.mask_id)
            want = torch.full((length,), -torch.inf, dtype=torch.float64)
            want[rows] = share
            want[step.before.tokens[b] != SMALL.mask_id] = -torch.inf
            assert_same_confidence(step.candidates.confidence[b], want, 1e-10)
            ours = (t[:, b].transpose(1, 2)[:, start:] for t in (made.kv.k, made.kv.v))
            for mine, other in zip(ours, (cache.k, cache.v), strict=True):
                torch.testing.assert_close(mine, other[:, start:], rtol=0, atol=1e-10)
            if step.rollout is not None:
                mass = torch.eye(length, dtype=torch.float64)
                for weights in maps:
                    layer = torch.eye(length, dtype=torch.float64)
                    layer[rows] = (weights + layer[rows]) / 2
                    mass = layer @ mass
                torch.testing.assert_close(step.rollout[b], mass.sum(0), rtol=0, atol=1e-10)


def test_a_shifted_model_predicts_from_the_previous_row():
    model = small_model(3, shift=1)
    prompt = random_prompt(5)
    for step in run(model, prompt, gen_length=8):
        tokens = step.before.tokens[0]
        logits, _ = Reference(model, 13).forward(tokens, torch.arange(13))
        token, share = confidence_of(logits, SMALL.mask_id)
        masked = tokens == SMALL.mask_id
        want = torch.where(masked, share.roll(1), -torch.inf)
        assert_same_confidence(step.candidates.confidence[0], want, 1e-10)
        assert torch.equal(step.candidates.tokens[0][masked], token.roll(1)[masked])


def test_rotation_keeps_far_positions_apart_in_bfloat16():
    exact = small_model(0, rope_theta=10000.0)
    coarse = small_model(0, dtype=torch.bfloat16, rope_theta=10000.0)
    position = torch.arange(3000, 3010)[None]
    for want, got in zip(exact.rotary(position), coarse.rotary(position), strict=True):
        assert got.dtype == torch.bfloat16
        assert (want - got.double()).abs().max() < 0.01


def test_attention_sees_both_directions():
    model = small_model(4)
    tokens = random_prompt(10)[None]
    before = full_pass(model, tokens)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 50
    assert (full_pass(model, changed) - before)[0, 0].abs().max() > 1e-3


def test_flops_count_every_matrix_product():
    """Against a count made layer by layer: two operations per multiply-add."""
    c = replace(SMALL, layers=2, width=8, heads=2, kv_heads=1, mlp=12, vocab=60)
    rows, length, predicted = 5, 11, 3
    one = 2 * rows * 8 * (8 + 4 + 4) + 2 * rows * 8 * 8  # q, k, v; out
    one += 2 * 2 * 2 * rows * length * 4  # scores and sums, 2 heads of width 4
    one += 3 * 2 * rows * 8 * 12  # gate, up, down
    first = 2 * (rows - 2) * 8 * (4 + 4)  # layer 0 keeps the k and v of the other three
    assert c.flops(*c.work(rows, length, rows), predicted) == 2 * one + 2 * predicted * 8 * 60
    assert c.flops(*c.work(rows, length, 2), 0) == 2 * one - first
    full = CONFIGS["llada-8b"].flops(*CONFIGS["llada-8b"].work(1, 1, 1), 0) / 2
    assert math.isclose(full, 6.98e9, rel_tol=0.01), "weights of LLaDA's layers, about 7 billion"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": 0}, "layers is 0; it must be a whole number from 1 to 1024"),
        ({"vocab": -3}, "vocab is -3; it must be a whole number from 1 to 1048576"),
        ({"max_length": 0}, "max_length is 0"),
        ({"layers": 1025}, "layers is 1025; it must be a whole number from 1 to 1024"),
        ({"mlp": 10**400}, "mlp is 1000"),
        ({"heads": 4.0}, "heads is 4.0; it must be a whole number"),
        ({"layers": True}, "layers is True; it must be a whole number"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; it must be a number above 0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan; it must be a number above 0"),
        ({"width": 30}, "width 30 does not split into 4 heads of even width"),
        ({"width": 12}, "width 12 does not split into 4 heads of even width"),
        ({"kv_heads": 3}, "4 heads cannot share 3 key/value heads"),
        ({"mask_id": 60}, "mask_id is 60; the vocabulary has ids 0 to 59"),
        ({"eos_id": -1}, "eos_id is -1; the vocabulary has ids 0 to 59"),
        ({"qkv_bias": 1}, "qkv_bias is 1; it must be True or False"),
        ({"family": "llama"}, "family is 'llama'; it must be one of llada, dream"),
        ({"family": ["dream"]}, "it must be one of llada, dream"),
        *(
            ({field: (1 << 20) + 1}, f"{field} is 1048577; it must be a whole number from 1 to")
            for field in ("width", "heads", "kv_heads", "mlp", "vocab", "max_length")
        ),
        ({"rope_theta": math.inf}, "rope_theta is inf; it must be a number above 0"),
        ({"rope_theta": "1"}, "rope_theta is '1'; it must be a number above 0"),
        ({"norm_eps": True}, "norm_eps is True; it must be a number above 0"),
        ({"mask_id": -1}, "mask_id is -1; the vocabulary has ids 0 to 59"),
        ({"mask_id": 1.0}, "mask_id is 1.0; the vocabulary has ids 0 to 59"),
        ({"eos_id": 60}, "eos_id is 60; the vocabulary has ids 0 to 59"),
        ({"shift": 2}, "shift is 2; it must be 0 or 1"),
        ({"shift": True}, "shift is True; it must be 0 or 1"),
        ({"name": "x" * 201}, "name is 'x{20}'; it must be a short text"),
        ({"name": 5}, "name is '5'; it must be a short text"),
        ({"qkv_bias": "x" * 99}, "qkv_bias is 'x{19}; it must be True or False"),
        ({"family": "x" * 99}, "family is 'x{19}; it must be one of llada, dream"),
        ({"mask_id": 58}, "mask_id and eos_id are both 58; .MASK. and the end of text must be two"),
    ],
)
def test_an_impossible_shape_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **changes)


def test_numbers_of_numpy_are_kept_as_plain_ones():
    config = replace(SMALL, layers=np.int64(3), rope_theta=np.float64(100.0), eos_id=np.int32(58))
    assert config == SMALL and json.loads(json.dumps(config.__dict__)) == SMALL.__dict__


@pytest.mark.parametrize(
    "changes",
    [
        *({field: 1 << 20} for field in ("width", "mlp", "vocab", "max_length")),
        {"width": 1 << 20, "heads": 1 << 19, "kv_heads": 1 << 19},
        {"layers": 1},
        {"layers": 1024},
        {"mlp": 1},
        {"max_length": 1},
        {"width": 2, "heads": 1, "kv_heads": 1},
        {"vocab": 2, "mask_id": 0, "eos_id": 1},
        {"rope_theta": 1},
        {"norm_eps": 1e-300},
        {"shift": 0},
        {"shift": 1},
        {"name": "x" * 200},
    ],
)
def test_a_shape_at_the_bounds_is_allowed(changes):
    config = replace(SMALL, **changes)
    assert all(getattr(config, field) == value for field, value in changes.items())


def test_a_model_without_tokenizer_says_so():
    for call in (lambda m: m.encode("hello"), lambda m: m.decode([1, 2])):
        with pytest.raises(ValueError, match=r"no tokenizer; put tokenizer\.json next to"):
            call(small_model())


def test_large_weights_make_confidences_that_differ():
    """Guard of the other tests: a model with flat outputs would hide every error."""
    seen = confidences(run(small_model(1), random_prompt(7, 1), gen_length=14))
    seen = seen[~torch.isneginf(seen)]
    assert seen.std() > 0.05 and seen.min() < 0.3 < seen.max() < 0.999


@pytest.mark.parametrize("ids", [[3, 1024], [-2, 3]])
def test_ids_outside_the_vocabulary_are_not_decoded(ids):
    says = rf"^ids go from {min(ids)} to {max(ids)}; the vocabulary has ids 0 to 1023$"
    with pytest.raises(ValueError, match=says):
        d2cache.load("tiny", device="cpu").decode(ids)


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


class Products(TorchDispatchMode):
    """Counts the products that oneDNN is asked for."""

    asked = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.asked += op is torch.ops.mkldnn._linear_pointwise.default
        return op(*args, **kwargs or {})


@needs_onednn
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2, "qkv_bias": True}])
def test_weights_laid_out_for_a_cpu_give_the_same_logits(changes):
    plain, laid = (small_model(7, torch.float32, **changes) for _ in range(2))
    assert laid.lay_out() is laid
    tokens = torch.stack([random_prompt(9, seed) for seed in (1, 2)])
    with torch.inference_mode(), Products() as products:
        want = full_pass(plain, tokens)
        assert products.asked == 0
        logits = full_pass(laid, tokens)
    assert products.asked == 4 * SMALL.layers + 2  # layer 0 makes q apart from k and v; LM head
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)
    for (name, ours), theirs in zip(
        laid.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
        by_columns = ours.dim() == 2 and not name.startswith("embed")
        assert ours.is_contiguous() != by_columns


@needs_onednn
def test_a_part_made_alone_has_the_bits_it_has_among_all():
    """A cache compares values with kept values; how they were computed must not matter."""
    layer = Linear(256, 768)
    layer.lay_out()
    with torch.inference_mode():
        x = torch.randn(1, 40, 256)
        assert torch.equal(layer.part(x[:, 5:25], slice(512, 768)), layer(x)[:, 5:25, 512:])


@needs_onednn
def test_a_layer_laid_out_for_a_cpu_still_has_gradients():
    layer, x = Linear(6, 4), torch.randn(3, 6)
    layer(x).square().sum().backward()
    want, layer.weight.grad = layer.weight.grad, None
    layer.lay_out()
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_types_stay_as_they_are(dtype):
    model = small_model(7, dtype).lay_out()
    assert all(p.is_contiguous() for p in model.parameters())


@needs_onednn
def test_a_laid_out_model_can_be_made_wider():
    model = small_model(7, torch.float32).lay_out().double()
    want = small_model(7, torch.float32).double()
    tokens = random_prompt(9)[None]
    with torch.inference_mode():
        torch.testing.assert_close(full_pass(model, tokens), full_pass(want, tokens))


@needs_onednn
def test_a_model_is_laid_out_when_it_is_loaded():
    model = d2cache.load("tiny", device="cpu")
    assert not any(m.weight.is_contiguous() for m in model.modules() if isinstance(m, Linear))
