"""Each kernel against the plain function it replaces.

Runs on a GPU, and without one through Triton's interpreter: TRITON_INTERPRET=1.
"""

import os
from copy import deepcopy
from dataclasses import fields, replace

import pytest
import torch

from d2cache import ops

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from d2cache import kernels  # noqa: E402  (imports triton)
from d2cache.model import CONFIGS, Model, ModelConfig  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float32 if INTERPRETED else torch.bfloat16
NEAR = 1e-5 if INTERPRETED else 1e-2  # relative error


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that was never written reads as NaN, or as the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def rand(*shape, dtype=DTYPE):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def off(out, wanted) -> float:
    """Relative error, in float32; NaN where anything was left unwritten."""
    out, wanted = out.float(), wanted.float()
    return float((out - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("add", [True, False])
def test_add_norm(add):
    x, delta, weight = rand(2, 5, 48), rand(2, 5, 48), rand(48)
    total, out = kernels.add_norm(x, delta if add else None, weight, 1e-5)
    wanted = x + delta if add else x
    assert torch.equal(total, wanted)
    wide = torch.nn.functional.rms_norm(wanted.float(), (48,), weight.float(), 1e-5)
    assert off(out, wide) < NEAR


def test_swiglu():
    x = rand(2, 3, 2 * 700)
    gate, up = x.float().chunk(2, -1)
    assert off(kernels.swiglu(x), torch.nn.functional.silu(gate) * up) < NEAR


@pytest.mark.parametrize("width", [48, 700, 4096, 18944])
def test_rows_in_8_bits(width):
    """To the last bit. The interpreter cuts off where a GPU rounds: there, numbers that fit."""
    x = rand(2, 3, width) * torch.exp2(torch.arange(-3.0, 3, device=DEVICE)).view(2, 3, 1)
    if INTERPRETED:
        x = (100 * x).to(torch.float8_e4m3fn).float()
        x[x.abs() < 1] = 0
        x[..., 5] = 448
        x[0, 1] *= -(2.0**-30)
    x[1, 1] = 0
    x = x.to(DTYPE)
    for one in (x, x.mT.contiguous().mT, x[:, 1:]):
        values, scales = kernels.quantize_rows(one)
        wanted, sizes = ops.quantize_rows(one)
        assert values.dtype == torch.float8_e4m3fn and values.is_contiguous()
        assert torch.equal(values.float(), wanted.float()) and torch.equal(scales, sizes)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_rotate_write(heads, kv_heads):
    from d2cache.model import rotate

    batch, rows, length, width = 2, 5, 11, 16
    qkv = rand(batch, rows, (heads + 2 * kv_heads) * width)
    index = torch.stack([torch.randperm(length)[:rows] for _ in range(batch)]).to(DEVICE)
    angle = torch.rand(batch, 1, rows, width // 2, device=DEVICE) * 6
    rope = angle.cos().to(DTYPE), angle.sin().to(DTYPE)
    split = qkv.clone().unflatten(-1, (-1, width)).transpose(1, 2)
    qk, new_v = split.split((heads + kv_heads, kv_heads), dim=1)
    q, new_k = rotate(qk.float(), [t.float() for t in rope]).split((heads, kv_heads), dim=1)
    k, v = rand(batch, kv_heads, length, width), rand(batch, kv_heads, length, width)
    at = index[:, None, :, None].expand_as(new_k)
    wanted_k = k.float().scatter(2, at, new_k)
    wanted_v = v.scatter(2, at, new_v)
    out = kernels.rotate_write(qkv, rope, index, k, v, heads)
    assert off(out, q) < NEAR and off(k, wanted_k) < NEAR and torch.equal(v, wanted_v)


def attention_case(batch=2, heads=4, kv_heads=2, rows=19, length=150, width=16, masked=False):
    q = rand(batch, rows, heads, width).transpose(1, 2)
    k, v = rand(batch, kv_heads, length, width), rand(batch, kv_heads, length, width)
    keys = None
    if masked:
        keys = torch.arange(length, device=DEVICE) >= torch.tensor([[0], [70]], device=DEVICE)
    return q, k, v, keys


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("plan", [None, (16, 64, 1, 4, 2), (32, 64, 2, 4, 2)])
def test_attention(masked, plan):
    q, k, v, keys = attention_case(masked=masked)
    out, weights = kernels.attention(q, k, v, keys, plan)
    wanted, _ = ops.attention_map(q.float(), k.float(), v.float(), keys)
    assert off(out, wanted) < NEAR
    share = (k.float().repeat_interleave(2, 1) @ q.float().mT / 4).mT
    if masked:
        share = share.masked_fill(~keys[:, None, None], -torch.inf)
    assert off(weights.lse, share.logsumexp(-1) * 1.4426950408889634) < NEAR


@pytest.mark.parametrize(("masked", "rows"), [(False, 19), (True, 19), (False, 140)])
def test_rollout(masked, rows):
    layers, (batch, length, heads) = 3, (2, 150, 4)
    qs, ks = rand(layers, batch, rows, heads, 16), rand(layers, batch, 2, length, 16)
    lse = torch.full((layers, batch, heads, rows), torch.nan, device=DEVICE)
    some = [torch.randperm(80 if masked else 150)[:rows].sort().values for _ in range(batch)]
    index = torch.stack(some) + 70 * masked
    index = index.to(DEVICE)
    index[:, -3:] = index[:, :1]
    valid = torch.arange(rows, device=DEVICE).expand(batch, -1) < rows - 3
    keys = attention_case(masked=masked)[3]
    maps, weights = [], []
    for i in range(layers):
        q = qs[i].transpose(1, 2)
        q[:, :, -3:] = q[:, :, :1]
        maps.append(ops.attention_map(q.float(), ks[i].float(), ks[i].float(), keys)[1])
        weights.append(kernels.attention(q, ks[i], ks[i], keys, lse=lse[i])[1])
    wanted = ops.rollout_mass(maps, index, valid, length)
    assert off(kernels.rollout(weights, index, valid, length), wanted) < NEAR


@pytest.mark.parametrize(("masked", "rows"), [(False, 7), (True, 19), (False, 70)])
def test_column_mass(masked, rows):
    layers, (batch, length, heads) = 3, (2, 150, 4)
    qs, ks = rand(layers, batch, rows, heads, 16), rand(layers, batch, 2, length, 16)
    lse = torch.full((layers, batch, heads, rows), torch.nan, device=DEVICE)
    counted = torch.rand(batch, rows, device=DEVICE) < 0.6
    counted[:, -3:] = False
    keys, maps, weights = attention_case(masked=masked)[3], [], []
    for i in range(layers):
        q = qs[i].transpose(1, 2)
        maps.append(ops.attention_map(q.float(), ks[i].float(), ks[i].float(), keys)[1])
        weights.append(kernels.attention(q, ks[i], ks[i], keys, lse=lse[i])[1])
    wanted = ops.column_mass(maps, counted)
    assert off(kernels.column_mass(weights, counted), wanted) < NEAR
    assert off(kernels.column_mass(weights[1:2], counted), wanted[1:2]) < NEAR


def test_the_likeliest():
    logits = rand(2, 3, 9001)
    logits[..., 7] = -torch.inf
    logits[0, 0, 5:9] = 9.0  # a tie goes to the left
    top, ids, lse = kernels.likeliest(logits, 5)
    wide = logits.float()
    assert ids[0, 0, 0] == 5
    assert torch.equal(top, wide.topk(5).values)
    assert torch.equal(wide.gather(-1, ids), top)
    assert off(lse, wide.logsumexp(-1)) < 1e-5


def test_orders():
    torch.manual_seed(1)
    score = torch.rand(3, 301, device=DEVICE)
    score[:, ::3] = 1.0  # ties
    score[0, 5] = -torch.inf
    eligible = torch.rand(3, 301, device=DEVICE) < 0.6
    eligible[2] = False
    for k in (1, 7, 400):
        assert torch.equal(
            kernels.top_k_mask(score, eligible, k), ops.top_k_mask(score, eligible, k)
        )
        double = score.double()
        assert torch.equal(
            kernels.top_k_mask(double, eligible, k), ops.top_k_mask(double, eligible, k)
        )
    mass = torch.rand(3, 301, device=DEVICE)
    for p in (0.0, 0.1, 0.5, 1.0):
        assert torch.equal(kernels.nucleus(mass, eligible, p), ops.nucleus(mass, eligible, p))


def test_lists():
    mask = torch.rand(4, 77, device=DEVICE) < 0.3
    mask[2] = False
    for count in (1, 9, 77):
        for ours, plain in zip(kernels.indices(mask, count), ops.indices(mask, count), strict=True):
            assert torch.equal(ours, plain)


def test_rows_in_a_list():
    wanted = torch.rand(4, 50, device=DEVICE) < 0.4
    wanted[3] = False
    source = wanted & (torch.rand(4, 50, device=DEVICE) < 0.5)
    source[2] = False
    start = torch.tensor([0, 3, 20, 7], device=DEVICE)
    most, heads = (int(m.sum(1).max()) for m in (wanted, source))
    for more in (-2, 0, 9):  # to cut, to fill
        size = most + more, heads + more
        plain = ops.list_rows(wanted, source, start, *size)
        assert all(map(torch.equal, plain, kernels.list_rows(wanted, source, start, *size)))


@pytest.mark.parametrize("sigma", [0.3, 10.0])
def test_density(sigma):
    known = torch.rand(3, 301, device=DEVICE) < 0.5
    assert off(kernels.certainty_density(known, sigma), ops.certainty_density(known, sigma)) < 1e-7


def test_what_moved_most():
    new = rand(2, 3, 50, 16)
    old = new.clone()
    old[:, :, ::2] += 0.3 * rand(2, 3, 25, 16)
    eligible = torch.rand(2, 50, device=DEVICE) < 0.8
    for k in (0, 7, 60):
        ours = kernels.moved_most(new, old, eligible, k)
        assert torch.equal(ours, ops.moved_most(new.float(), old.float(), eligible, k))


@pytest.mark.parametrize("size", [5, 30])
def test_canvas_masks_and_rows(size):
    from d2cache.canvas import Canvas, Plan
    from d2cache.work import masks_of

    tokens = torch.randint(0, 9, (3, 50), device=DEVICE)
    tokens[:, 20:][torch.rand(3, 30, device=DEVICE) < 0.6] = 9
    tokens[1, 20:] = 3
    tokens[2, 20:40] = 3
    start = torch.tensor([0, 4, 7], device=DEVICE)
    canvas = Canvas(tokens, start, 20, size, mask_id=9, eos_id=8, padded=True)
    found = kernels.canvas_masks(tokens, start, 20, size, 9)
    for name, plane in zip(("masked", "known", "block", "eligible", "live"), found, strict=True):
        assert torch.equal(plane, getattr(canvas, name)), name
    predict, refresh = canvas.masked, torch.rand(3, 50, device=DEVICE) < 0.3
    ids = torch.where(torch.rand(3, 50, device=DEVICE) < 0.5, tokens, -1)
    stuck = torch.tensor(True, device=DEVICE)
    for shift in (0, 1):
        plan = Plan(predict, refresh, refresh.byte())
        wanted, counts = masks_of(canvas, plan, shift, stuck, ids)
        planes, ours = kernels.masks_of(tokens, ids, predict, refresh, canvas.live, stuck, shift)
        assert torch.equal(counts, ours)
        assert all(map(torch.equal, wanted, planes))


@pytest.mark.parametrize("size", [7, None])
def test_search_window(size):
    masked = torch.rand(3, 50, device=DEVICE) < 0.4
    masked[:, :12] = False
    masked[2] = False
    at = torch.arange(50, device=DEVICE) - 12
    inside = (at >= 7) & (at < 14) & masked
    size = torch.tensor([[1], [9], [4]], device=DEVICE) if size is None else size
    for k in (1, 6, 90):
        plain = ops.search_window(masked, inside, at, size, k)
        assert torch.equal(kernels.search_window(masked, inside, at, size, k), plain)


SIZES = {  # heads of 128 and 64, shared keys, biases, sizes that do not divide by the blocks
    "plain": dict(width=512, heads=4, kv_heads=4, mlp=768),
    "shared": dict(width=1792, heads=14, kv_heads=2, mlp=1472, qkv_bias=True),
    "narrow": dict(width=256, heads=4, kv_heads=4, mlp=704),
    "tall": dict(width=256, heads=2, kv_heads=1, mlp=18944),  # gate and up by two instructions
}


def drawn(size: str, layers=3):
    """A model of random weights, gains included."""
    config = ModelConfig(
        layers=layers, vocab=64, rope_theta=1e4, norm_eps=1e-5, mask_id=63, eos_id=62, **SIZES[size]
    )
    model = Model(config).to(DEVICE, DTYPE).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.copy_(rand(len(weight)))
    return model


def cache_of(config, batch, length):
    """Keys and values already in the cache."""
    shape = config.layers, batch, config.kv_heads, length, config.head_width
    return rand(*shape), rand(*shape)


def link_by_torch(model, i, x, heads):
    """x before the attention of layer i, from x before the last layer's output projection."""
    if i:
        x = x + model.blocks[i - 1].out_proj(heads)
        x = x + model.blocks[i - 1].mlp(x)
    return x


def write(keys, index, new):
    keys.scatter_(2, index[:, None, :, None].expand_as(new), new)


def needs_the_chip(device):
    from d2cache.kernels.chain import MOST_ROWS, multiprocessors_of

    if multiprocessors_of(device) < MOST_ROWS:  # a kernel that does not compile is not a reason
        pytest.skip("needs a chip of compute capability 9.0 with 128 multiprocessors")


def workspace_for(tiling, rows, layers):
    """A workspace that reads as NaN until it is written."""
    workspace = kernels.Workspace.made(tiling, rows, layers + 1, DEVICE)
    for field in fields(workspace):
        part = getattr(workspace, field.name)
        if field.name not in ("tiling", "met"):
            part.fill_(torch.nan)
    return workspace


def unset(*shape, dtype=DTYPE):
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="CUDA is not interpreted")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 16, 50, 64, 65, 122, 128])
@torch.no_grad()
def test_one_link(size, rows):
    needs_the_chip(device := torch.device("cuda", 0))
    model, batch, length = drawn(size), 2 if rows % 2 == 0 else 1, 150
    c, wide, per = model.config, deepcopy(model).float(), rows // batch
    tiling = kernels.compiled_tiling(c, 2, rows, device)
    index = torch.stack([torch.randperm(length, device=DEVICE)[:per] for _ in range(batch)])
    rope = [t.flatten(0, 2) for t in model.rotary(index)]
    first, heads = rand(rows, c.width), rand(rows, c.width)
    for i in (0, 1, c.layers):
        x = link_by_torch(wide, i, first.float(), heads.float())
        k, v = (t[:1] for t in cache_of(c, batch, length))
        if i < c.layers:
            block, y = wide.blocks[i], x.view(batch, per, -1)
            q, *new = block.qkv(y, wide.rotary(index))
            wanted = [t[0].float() for t in (k, v)]
            for old, one in zip(wanted, new, strict=True):
                write(old, index, one)
            wanted += [q.transpose(1, 2).flatten(2)]
        runs = []
        for _ in range(5):  # the blocks of a kernel meet in another order each time
            workspace, mine = workspace_for(tiling, rows, c.layers), first.clone()
            slots = kernels.Slots(
                unset(1, batch, per, c.width),
                k.clone(),
                v.clone(),
                unset(1, batch, c.heads, per, dtype=torch.float32),
            )
            kernels.chain(
                workspace,
                list(model.blocks),
                i,
                i,
                kernels.ChainRows(mine, rope, index),
                1e-5,
                slots,
                heads if i else None,
            )
            assert off(mine, x) < NEAR
            if i < c.layers:
                found = slots.k[0], slots.v[0], slots.q[0]
                assert all(off(*pair) < NEAR for pair in zip(found, wanted, strict=True))
                runs.append(found)
                assert all(map(torch.equal, runs[0], runs[-1]))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="CUDA is not interpreted")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows, length", [(1, 1), (16, 63), (50, 700), (65, 130), (128, 1024)])
@torch.no_grad()
def test_all_layers(size, rows, length):
    needs_the_chip(device := torch.device("cuda", 0))
    model = drawn(size)
    c, wide = model.config, deepcopy(model).float()
    tiling = kernels.compiled_tiling(c, c.layers, rows, device)
    index = torch.randperm(length, device=DEVICE)[None, :rows]
    first, cache = rand(1, rows, c.width), cache_of(c, 1, length)

    def plainly(model):
        """What all layers leave: x, k, v, q and each row's sum of weights."""
        x, dtype, kept = first.to(model.dtype), model.dtype, []
        keys, values = (t.to(dtype).clone() for t in cache)
        rope = model.rotary(index)
        for i, block in enumerate(model.blocks):
            q, *new = block.qkv(x, rope)
            write(keys[i], index, new[0])
            write(values[i], index, new[1])
            x = x + block.attend(q, keys[i], values[i], None)
            x = x + block.mlp(x)
            shared = keys[i].repeat_interleave(c.heads // c.kv_heads, 1).float()
            score = q.float() @ shared.transpose(2, 3) * c.head_width**-0.5
            kept.append((q.transpose(1, 2).flatten(2), score.exp().sum(-1)))
        return x[0], keys, values, *map(torch.stack, zip(*kept, strict=True))

    wanted, narrow = plainly(wide), plainly(model)
    for every in (True, False, True):
        workspace, mine = workspace_for(tiling, rows, c.layers), first[0].clone()
        many = c.layers if every else 1
        slots = kernels.Slots(
            unset(many, 1, rows, c.width),
            *(t.clone() for t in cache),
            unset(many, 1, c.heads, rows, dtype=torch.float32),
        )
        rope = [t.flatten(0, 2) for t in model.rotary(index)]
        given = kernels.ChainRows(mine, rope, index)
        kernels.chain(workspace, list(model.blocks), 0, c.layers, given, 1e-5, slots)
        found = mine, slots.k, slots.v, slots.q, slots.lse.exp2()
        for part, one, other in zip(found, wanted, narrow, strict=True):
            one, other = one[-len(part) :], other[-len(part) :]
            assert off(part, one) < max(NEAR, 1.2 * off(other, one))


def test_a_tiling_gives_every_block_its_columns():
    from d2cache.kernels.chain import MOST_LAYERS, SHARED, tiling_of

    llada, dream, tiny = (CONFIGS[name] for name in ("llada-8b", "dream-7b", "tiny"))
    for rows in (1, 64, 65, 128):
        for c in (llada, tiny, dream):
            tiling = tiling_of(c, c.layers, rows, 132)
            assert tiling.shared <= SHARED and tiling.blocks <= 132 and tiling.blocks % 2 == 0
            assert tiling.w_stages >= 3 and tiling.groups * 64 >= rows
            assert tiling.x_stages >= 2 * c.head_width // 64  # all of a turn's keys or values
            sizes = c.width, c.mlp, (c.heads + 2 * c.kv_heads) * c.head_width
            taken = tiling.out_cols, tiling.gate_cols, tiling.qkv_cols
            for cols, each in zip(sizes, taken, strict=True):
                assert each % 8 == 0 and each <= 256 and tiling.blocks * each >= cols
            assert tiling.out_cols % 16 == 0 and tiling.out_cols * (tiling.blocks // 2) >= c.width
            assert 2 * c.heads * tiling.groups <= tiling.blocks
            # outputs of attention, a line of each padded by 8, and their sums lie where tiles were
            space = tiling.groups * 64 * (4 * (c.head_width + 8) + 4)
            assert space <= tiling.x_stages * tiling.groups * 64 * 128
    assert tiling_of(llada, 32, 128, 114) is None  # 64 pairs of blocks attend
    assert tiling_of(llada, 32, 129, 132) is None
    assert tiling_of(llada, MOST_LAYERS + 1, 128, 132) is None
    assert tiling_of(tiny, 8, 38, 0) is None
    assert tiling_of(replace(llada, mlp=19456), 32, 128, 132) is None  # too wide for the registers
    assert tiling_of(replace(llada, heads=128, kv_heads=128), 32, 128, 132) is None  # heads of 32
