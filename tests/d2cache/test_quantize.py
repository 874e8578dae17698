"""Weights in 8 bits: what is rounded, by how much, and that every path uses the same weights."""

import copy

import pytest
import torch
from checkpoints import write_checkpoint
from lab import POLICIES, assert_same_confidence, confidences, random_prompt, run, small_model

import d2cache
from d2cache import models, ops, quantize, weights
from d2cache.model import Block, Linear
from d2cache.quantize import Fp8Linear, to_fp8
from d2cache.split import RemoteBlock

PRODUCTS = ("qkv_proj", "out_proj", "gate_up_proj", "down_proj")


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(wide: int, high: int, bias: bool = False, dtype=torch.float32, kind=Linear):
    made = kind(wide, high, bias=bias, dtype=dtype)
    for i, p in enumerate(made.parameters()):
        p.data.copy_(rand(*p.shape, seed=i))
    return made.requires_grad_(False)


def off(out, wanted) -> float:
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())


def widened(layer: Fp8Linear) -> torch.Tensor:
    return layer.weight.double() * layer.scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_element_is_rounded_by_at_most_a_sixteenth(dtype):
    spread = torch.exp2(torch.randint(-20, 20, (64, 1)) + 3 * rand(64, 200))
    x = (rand(64, 200) * spread).to(dtype)
    values, scales = ops.quantize_rows(x)
    assert values.dtype == torch.float8_e4m3fn and values.shape == x.shape
    assert scales.dtype == torch.float32 and scales.shape == (64, 1)
    most = x.double().abs().amax(1, keepdim=True)
    assert torch.allclose(scales.double() * 448, most, rtol=1e-6, atol=0)
    assert (values.float().abs().amax(1) == 448).all(), "the range of 8 bits is used up"
    error = (values.double() * scales - x.double()).abs()
    size = x.double().abs()
    assert (error <= torch.maximum(size / 16, scales / 1024) * (1 + 1e-5)).all()
    assert (error > size / 32).any(), "8 bits cannot be nearer"


def test_what_comes_out_is_contiguous():
    x = rand(32, 6).T
    values, scales = ops.quantize_rows(x)
    assert values.is_contiguous() and scales.is_contiguous()
    assert torch.equal(values.float(), ops.quantize_rows(x.contiguous())[0].float())


def test_rows_of_zeros_and_near_zero_stay_finite():
    x = torch.zeros(4, 32)
    x[1, 3], x[2, 5], x[3] = 1e-38, 1e-44, -7.0
    values, scales = ops.quantize_rows(x)
    back = values.float() * scales
    assert back.isfinite().all() and scales.isfinite().all() and (scales > 0).all()
    assert (back[0] == 0).all() and back[:3].abs().max() < 1e-37
    assert torch.allclose(back[3], x[3])


def test_a_huge_row_affects_no_other():
    x = rand(8, 64)
    plain, scales = ops.quantize_rows(x)
    x[3] *= 1e6
    x[5, 7] = -1e9
    values, others = ops.quantize_rows(x)
    for row in (0, 1, 2, 4, 6, 7):
        assert torch.equal(values[row].float(), plain[row].float())
        assert torch.equal(others[row], scales[row])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_an_8_bit_product_the_error_is_that_of_the_weights(bias, dtype):
    wide = linear(96, 64, bias, dtype)
    short, x = Fp8Linear(wide), rand(2, 5, 96, seed=9, dtype=dtype)
    y = short(x)
    assert y.dtype == dtype and y.shape == (2, 5, 64)
    exact = torch.nn.functional.linear(
        x.double(), widened(short), wide.bias.double() if bias else None
    )
    assert off(y, exact) < {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert 0.01 < off(exact, wide(x)) < 0.04  # of normal weights: 0.026


@pytest.mark.parametrize("bias", [False, True])
def test_an_8_bit_product_has_the_error_of_weights_and_rows(bias, monkeypatch):
    """What a GPU does, by the CPU's own product of 8-bit numbers."""
    monkeypatch.setattr(quantize, "has_fp8_product", lambda x: True)
    wide = linear(96, 64, bias, torch.bfloat16)
    short, x = Fp8Linear(wide), rand(2, 5, 96, seed=9, dtype=torch.bfloat16)
    x[0, 2] *= 1e4  # a row of its own scale
    y = short(x)
    assert y.dtype == torch.bfloat16 and y.shape == (2, 5, 64)
    values, scales = ops.quantize_rows(x)
    exact = (values.double() * scales) @ widened(short).T + (wide.bias.double() if bias else 0)
    for row, (got, want) in enumerate(zip(y.flatten(0, 1), exact.flatten(0, 1), strict=True)):
        assert off(got, want) < 5e-3, row
    assert 0.02 < off(y, wide(x)) < 0.06


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_part_is_that_part_of_the_whole(eight, bias, monkeypatch):
    monkeypatch.setattr(quantize, "has_fp8_product", lambda x: eight)
    dtype = torch.bfloat16 if eight else torch.float64
    wide = linear(32, 96, bias, dtype)
    short, x = Fp8Linear(wide), rand(7, 32, dtype=dtype)
    for one in (wide, short):
        whole = one(x)
        for part in (slice(0, 32), slice(32, 96), slice(64, 96), slice(None)):
            torch.testing.assert_close(one.part(x, part), whole[:, part], rtol=1e-2, atol=1e-2)
    out = torch.full((7, 64), torch.nan, dtype=dtype)
    made = short.part(x, slice(32, 96), out)
    assert made.data_ptr() == out.data_ptr() and torch.equal(out, short.part(x, slice(32, 96)))
    # a part that a GPU cannot take is widened
    wanted = x.double() @ widened(short)[3:10].T + (wide.bias[3:10].double() if bias else 0)
    assert off(short.part(x, slice(3, 10)), wanted) < 1e-2


@pytest.mark.parametrize("shape", [(1, 32), (1, 1, 32), (3, 1, 2, 32)])
def test_rows_of_any_shape(shape, monkeypatch):
    monkeypatch.setattr(quantize, "has_fp8_product", lambda x: True)
    short = Fp8Linear(linear(32, 48, dtype=torch.bfloat16))
    x = rand(*shape, dtype=torch.bfloat16)
    y = short(x)
    assert y.shape == (*shape[:-1], 48)
    alone = torch.stack([short(row[None])[0] for row in x.reshape(-1, 32)])
    assert torch.equal(y.reshape(-1, 48), alone), "a row's result does not depend on its mates"


def quantized(model):
    model = copy.deepcopy(model)
    to_fp8(model)
    return model


def test_linear_layers_are_quantized_and_nothing_else():
    model = small_model(vocab=64, mask_id=63, qkv_bias=True)
    short = copy.deepcopy(model)
    names = to_fp8(short)
    wanted = {f"blocks.{i}.{name}.weight" for i in range(3) for name in PRODUCTS}
    assert set(names) == wanted | {"head.weight"} and len(names) == 13
    assert short.weights == "fp8" and model.weights is None
    assert short.dtype == torch.float64 and all(type(block) is Block for block in short.blocks)
    old, new = model.state_dict(), short.state_dict()
    assert set(new) == set(old) | {weights.scale_of(name) for name in names}
    for name, tensor in old.items():
        if name not in names:
            assert torch.equal(new[name], tensor) and new[name].dtype == torch.float64
            continue
        scale = new[weights.scale_of(name)]
        assert new[name].dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
        assert off(new[name].double() * scale, tensor) < 0.04
    assert not any(p.requires_grad for p in short.parameters())


def test_sizes_that_do_not_fit_stay_as_they_are():
    short = quantized(small_model())  # a vocabulary of 60
    assert not isinstance(short.head, Fp8Linear)
    assert all(isinstance(getattr(b, name), Fp8Linear) for b in short.blocks for name in PRODUCTS)
    none = small_model(width=24, heads=2, kv_heads=2, mlp=40)
    before = none.state_dict()
    with pytest.raises(ValueError, match="no product of small has sizes that are multiples of 16"):
        to_fp8(none)
    assert none.weights is None and none.state_dict().keys() == before.keys()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p[0]}-{p[1]}")
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_every_policy_runs_as_with_those_weights_in_float64(policy, kv_heads):
    """Parts of q, k and v included: all that is computed is computed with the rounded weights."""
    model = small_model(kv_heads=kv_heads, qkv_bias=True)
    short = quantized(model)
    for name, one in short.named_modules():
        if isinstance(one, Fp8Linear):
            model.get_submodule(name).weight.data.copy_(widened(one))
    settings = dict(gen_length=24, block_length=8)
    a, b = (run(m, random_prompt(9), policy, **settings) for m in (model, short))
    assert len(a) == len(b) and torch.equal(a[-1].tokens, b[-1].tokens)
    assert_same_confidence(confidences(a), confidences(b), within=1e-9)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_in_8_bits(tmp_path, family, dtype):
    folder, seen = str(write_checkpoint(tmp_path / family, family)), []
    progress = lambda *one: seen.append(one)
    loaded = d2cache.load(folder, "cpu", dtype, progress, weights="fp8")
    plain = d2cache.load(folder, "cpu", dtype)
    size = sum(p.nbytes for p in loaded.parameters())
    assert seen[-1] == ("reading", size, size)
    assert size < 0.8 * sum(p.nbytes for p in plain.parameters())
    assert len(seen) == len(plain.state_dict())
    to_fp8(plain)
    ours, theirs = loaded.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and loaded.weights == plain.weights == "fp8"
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.double(), theirs[name].double()), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_a_model_over_two_devices_in_8_bits(tmp_path):
    folder = str(write_checkpoint(tmp_path / "dream", "dream"))
    one, two = (d2cache.load(folder, device, weights="fp8") for device in ("cpu", "cpu,cpu"))
    assert sum(isinstance(block, RemoteBlock) for block in two.blocks) not in (0, len(two.blocks))
    a, b = (run(m, random_prompt(9), "d2", gen_length=16) for m in (one, two))
    assert all(torch.equal(x.logits, y.logits) for x, y in zip(a, b, strict=True))


def test_only_what_is_kept_needs_room(tmp_path, monkeypatch):
    folder = str(write_checkpoint(tmp_path / "llada", "llada"))
    plain, short = (
        sum(p.nbytes for p in d2cache.load(folder, "cpu", weights=kind).parameters())
        for kind in (None, "fp8")
    )
    monkeypatch.setattr(weights, "free_memory", lambda device: short)
    d2cache.load(folder, "cpu", weights="fp8")
    monkeypatch.setattr(weights, "free_memory", lambda device: short - 1)
    with pytest.raises(ValueError, match="GB for its weights"):
        d2cache.load(folder, "cpu", weights="fp8")
    monkeypatch.setattr(weights, "free_memory", lambda device: plain - 1)
    with pytest.raises(ValueError, match="GB for its weights"):
        d2cache.load(folder, "cpu")


@pytest.mark.parametrize("kind", ["fp16", "FP8", "", 8, True, torch.float8_e4m3fn])
def test_other_weights_are_refused_before_anything_is_read(kind, monkeypatch):
    monkeypatch.setattr(models, "find", None)
    with pytest.raises(ValueError) as refused:
        d2cache.load("tiny", "cpu", weights=kind)
    assert str(refused.value) == f"weights is {kind!r}; it must be 'fp8' or None"


def test_a_model_in_8_bits_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="weights of small are fp8; load it without them to save"):
        weights.save(quantized(small_model()), tmp_path / "x", torch.float32)
    assert not (tmp_path / "x").exists()


def test_the_bundled_model_still_answers(tmp_path):
    model = d2cache.load("tiny", "cpu", weights="fp8")
    ids = model.encode(
        "Tom has 5 apples. He buys 3 bags of 4 apples. How many apples does Tom have?"
    )
    for policy in ("none", "d2"):
        steps = d2cache.generate(model, ids, policy, gen_length=64, stop_at_eos=True)
        trace = d2cache.Trace.record(steps)
        assert "17" in model.decode(trace.answer)
    trace.save(tmp_path / "run.safetensors")
    assert d2cache.Trace.load(tmp_path / "run.safetensors").run["weights"] == "fp8"


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 16, 122, 1000])
@pytest.mark.parametrize("size", [(4096, 12288), (18944, 3584), (64, 48)])
def test_the_product_of_a_gpu(size, rows, bias):
    """Against float64 over the same 8-bit numbers, and against the weights before."""
    wide = linear(*size, bias, torch.bfloat16).to("cuda")
    short, x = Fp8Linear(wide), rand(rows, size[0], seed=9, dtype=torch.bfloat16).to("cuda")
    assert quantize.has_fp8_product(x), "this GPU widens the weights"
    values, scales = ops.quantize_rows(x)
    exact = (values.double() * scales) @ widened(short).T + (wide.bias.double() if bias else 0)
    whole = torch.full((rows, size[1]), torch.nan, dtype=torch.bfloat16, device="cuda")
    short.part(x, slice(None), whole)
    # fast accumulation keeps about 14 bits of a sum: its error grows with the row's length
    assert off(whole, exact) < 2e-2 and 0.02 < off(whole, wide(x)) < 0.06
    assert torch.equal(whole, short(x))
    for part in (slice(0, 16), slice(16, 48)):
        assert off(short.part(x, part), exact[:, part]) < 2e-2
    odd = x.double() @ widened(short)[8:20].T + (wide.bias[8:20].double() if bias else 0)
    assert off(short.part(x, slice(8, 20)), odd) < 1e-2  # widened: no 12 rows in 8 bits


@gpu
def test_other_types_on_a_gpu_have_the_error_of_the_weights_alone():
    for dtype in (torch.float32, torch.float64):
        wide = linear(96, 64, True, dtype).to("cuda")
        short, x = Fp8Linear(wide), rand(5, 96, seed=9, dtype=dtype).to("cuda")
        assert not quantize.has_fp8_product(x)
        assert off(short(x), x.double() @ widened(short).T + wide.bias.double()) < 1e-3
