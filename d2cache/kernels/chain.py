"""The layers of a model, or everything between two attentions, in one kernel, compiled from
chain.cu on first use.

For chips with wgmma and TMA (compute capability 9.0), bfloat16 and up to 128 rows. The compiler,
NVRTC, comes with torch.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import byref, c_char_p, c_float, c_int, c_uint, c_uint64, c_void_p
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
MOST_ROWS = 128
MOST_LAYERS = 48  # in one kernel, whose parameters have room for 32 KB
PAIRS = 16  # columns of q, k, v that turn together with as many others
LOG2E = 1.4426950408889634
SHARED = 227 * 1024  # bytes that a block can have
DEEP = 64  # of depth at a time
X_STAGES = 6  # rows come from L2 in the time of about four turns


@dataclass(frozen=True)
class Tiling:
    """How the products of a layer are cut into blocks; the names are those of chain.cu."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    out_cols: int
    gate_cols: int
    qkv_cols: int
    groups: int
    bias: int

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head

    @property
    def most_cols(self) -> int:
        return max(self.out_cols, 2 * self.gate_cols, self.qkv_cols)

    @property
    def x_stages(self) -> int:
        return X_STAGES if self.groups == 2 else 8

    @property
    def w_stages(self) -> int:
        rows = self.x_stages * 64 * self.groups
        return (SHARED // (2 * DEEP) - 24 - rows) // self.most_cols

    @property
    def shared(self) -> int:
        """Bytes of a block: both rings, which begin at a multiple of 1024."""
        rows = self.x_stages * 64 * self.groups + self.w_stages * self.most_cols
        return 2 * DEEP * rows + 1024

    @property
    def blocks(self) -> int:
        """In pairs: each has half the depth of d columns, or half the keys of a head's 64 rows."""
        tiles = lambda cols, each: -(-cols // each)
        many = max(
            2 * tiles(self.width, self.out_cols),
            tiles(self.mlp, self.gate_cols),
            tiles(self.qkv, self.qkv_cols),
            2 * self.heads * self.groups,
        )
        return many + many % 2


def tiling_of(config, layers: int, rows: int, chip: int) -> Tiling | None:
    """The tiling for `layers` layers of a ModelConfig in one kernel, on a chip of `chip`
    multiprocessors; None where there is none."""
    c, head = config, config.head_width
    if not chip or head not in (64, 128) or layers > MOST_LAYERS:
        return None
    each = lambda cols, least=8: -(-cols // (least * chip)) * least
    tiling = Tiling(
        layers,
        c.width,
        c.mlp,
        c.heads,
        c.kv_heads,
        head,
        each(2 * c.width, 16),
        each(c.mlp),
        each((c.heads + 2 * c.kv_heads) * head, 2 * PAIRS),
        1 if rows <= 64 else 2,
        int(c.qkv_bias),
    )
    fits = not (c.width % DEEP or c.mlp % DEEP) and max(tiling.out_cols, tiling.qkv_cols) <= 256
    fits = fits and tiling.gate_cols <= 144  # sums of gate and up fill the registers
    return tiling if fits and 0 < rows <= MOST_ROWS and tiling.blocks <= chip else None


@lru_cache
def multiprocessors_of(device: torch.device) -> int:
    """Multiprocessors of a device that chain.cu supports, else 0."""
    if device.type != "cuda" or torch.version.cuda is None:
        return 0
    one = torch.cuda.get_device_properties(device)
    return one.multi_processor_count if (one.major, one.minor) == (9, 0) else 0


@lru_cache
def compiled_tiling(config, layers: int, rows: int, device: torch.device) -> Tiling | None:
    """The tiling for these sizes, its kernel compiled; None where torch must do the products."""
    tiling = tiling_of(config, layers, rows, multiprocessors_of(device))
    if tiling is not None:
        try:
            with torch.cuda.device(device):
                compiled(tiling, device.index)
        except (OSError, RuntimeError) as error:  # no NVRTC, or one that does not know this chip
            LOG.warning("products by torch: %s", str(error).splitlines()[0])
            return None
    return tiling


class Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [
        *((name, c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", c_void_p),
        ("attributes", c_void_p),
        ("count", c_uint),
    ]


class Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = [("kind", c_int), ("pad", c_int), ("value", c_uint * 16)]


class Places(ctypes.Structure):
    _fields_ = [
        (name, c_void_p)
        for name in (
            "x",
            "gained",
            "hidden",
            "heads",
            "squares",
            "q",
            "k",
            "v",
            "lse",
            "cos",
            "sin",
            "index",
            "met",
            "q_layer",
            "kv_layer",
            "kv_batch",
            "kv_head",
            "lse_layer",
        )
    ]


class Task(ctypes.Structure):
    _fields_ = [
        *((name, c_int) for name in ("rows", "per", "length", "layers", "first", "last")),
        ("eps", c_float),
        ("scale", c_float),
    ]


# CU_LAUNCH_ATTRIBUTE_COOPERATIVE, as blocks that meet must all be resident; and
# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: weights are read before rows are ready
ASKED = 2, 6
MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} failed with code {code}")


@lru_cache
def _driver():
    return ctypes.CDLL("libcuda.so.1")


PRODUCTS = {  # of chain.cu, and what the first factor is: an address, or four registers
    "mma": "unsigned long long",
    "mma_held": "const unsigned int*",
    "mma_across": "const unsigned int*",
}


def _multiply(wide: int, name: str) -> str:
    """A product of chain.cu for `wide` columns: one wgmma."""
    held = name != "mma"
    count, rows = wide // 2, 4 if held else 1
    names = lambda first, many: ", ".join(f"%{i}" for i in range(first, first + many))
    sums = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    first = f"{{{names(count, 4)}}}" if held else names(count, 1)
    given = ", ".join(f'"r"(a[{i}])' for i in range(4)) if held else '"l"(a)'
    turned = "1, 1, 0, 0" if not held else f"1, 1, {int(name == 'mma_across')}"
    return (
        f"template <> __device__ __forceinline__ void {name}<{wide}>(float* d, "
        f"{PRODUCTS[name]} a, "
        "unsigned long long b, int add) { asm volatile("
        f'"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + rows + 1}, 0;\\n'
        f"wgmma.mma_async.sync.aligned.m64n{wide}k16.f32.bf16.bf16 {{{names(0, count)}}}, "
        f'{first}, %{count + rows}, p, {turned};\\n}}" : {sums} : {given}, "l"(b), "r"(add)); }}\n'
    )


def source(tiling: Tiling) -> tuple[str, dict[str, int]]:
    """The text that is compiled, and its macros."""
    wide = (
        2 * tiling.gate_cols if tiling.gate_cols <= 128 else tiling.gate_cols
    )  # 256 at once at most
    made = [("mma", each) for each in sorted({tiling.out_cols, wide, tiling.qkv_cols})]
    made += [("mma_held", 64), ("mma_across", DEEP)]
    text = "".join(
        f"template <int N> __device__ void {name}(float*, {first}, unsigned long long, int);\n"
        for name, first in PRODUCTS.items()
    )
    text += "".join(_multiply(wide, name) for name, wide in made)
    text += Path(__file__).with_name("chain.cu").read_text("utf-8")
    derived = ("most_cols", "x_stages", "w_stages")
    macros = asdict(tiling) | {name: getattr(tiling, name) for name in derived}
    return text, {name.upper(): value for name, value in macros.items()}


@lru_cache
def compiled(tiling: Tiling, device: int) -> c_void_p:
    """The kernel of this tiling on the current device; RuntimeError or OSError where that fails."""
    nvrtc = ctypes.CDLL(f"libnvrtc.so.{torch.version.cuda.split('.')[0]}")
    text, macros = source(tiling)
    options = [f"-D{name}={value}".encode() for name, value in macros.items()]
    options += [b"--gpu-architecture=sm_90a", b"--std=c++17", b"-default-device"]
    program, size = c_void_p(), ctypes.c_size_t()
    made = nvrtc.nvrtcCreateProgram(byref(program), text.encode(), b"chain.cu", 0, None, None)
    _check(made, "nvrtcCreateProgram")
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options)):
            nvrtc.nvrtcGetProgramLogSize(program, byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"chain.cu does not compile: {log.value.decode()}")
        _check(nvrtc.nvrtcGetCUBINSize(program, byref(size)), "nvrtcGetCUBINSize")
        binary = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, binary), "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))
    module, kernel, driver = c_void_p(), c_void_p(), _driver()
    torch.cuda.current_stream()  # creates a context if there is none
    _check(driver.cuModuleLoadData(byref(module), binary), "cuModuleLoadData")
    _check(driver.cuModuleGetFunction(byref(kernel), module, b"chain"), "cuModuleGetFunction")
    _check(driver.cuFuncSetAttribute(kernel, MOST_SHARED, tiling.shared), "cuFuncSetAttribute")
    return kernel


def _map(place: int, size: list[int], strides: list[int], box: list[int]) -> bytes:
    """CUtensorMap of bfloat16s, in tiles whose lines of 128 bytes are in the order wgmma reads."""
    buffer = (ctypes.c_char * 192)()
    aligned = (ctypes.c_char * 128).from_buffer(buffer, -ctypes.addressof(buffer) % 64)
    many, steps = len(size), [1] * len(size)
    bfloat16, swizzle_128, promotion_256 = 9, 3, 3
    made = _driver().cuTensorMapEncodeTiled(
        aligned,
        bfloat16,
        many,
        c_void_p(place),
        (c_uint64 * many)(*size),
        (c_uint64 * (many - 1))(*(2 * stride for stride in strides)),
        (c_uint * many)(*box),
        (c_uint * many)(*steps),
        0,
        swizzle_128,
        promotion_256,
        0,
    )
    _check(made, "cuTensorMapEncodeTiled")
    return bytes(aligned)


def tiles(matrix: Tensor, lines: int) -> bytes:
    """A matrix in tiles of `lines` x 64."""
    size, stride = [*matrix.shape[::-1]], matrix.stride(0)
    return _map(matrix.data_ptr(), size, [stride], [DEEP, lines])


def pairs(weight: Tensor, head: int) -> bytes:
    """The weight of q, k, v in tiles of PAIRS lines of a head's first half and as many of its
    second, which they turn with."""
    rows, width = weight.shape
    stride, half = weight.stride(0), head // 2
    return _map(
        weight.data_ptr(),
        [width, PAIRS, half // PAIRS, 2, rows // head],
        [stride, PAIRS * stride, half * stride, head * stride],
        [DEEP, PAIRS, 1, 2, 1],
    )


@dataclass
class Workspace:
    """Memory through which the blocks of a chain pass values on: gained and heads (R,d), hidden
    (R,MLP), squares (2,blocks,64 or 128) float32, partial sums of the rows' squares, and met
    (L+1,8) int32, for each link how many blocks have come to each meeting, zero at first."""

    tiling: Tiling
    gained: Tensor
    heads: Tensor
    hidden: Tensor
    squares: Tensor
    met: Tensor

    @classmethod
    def made(cls, tiling: Tiling, rows: int, links: int, device: torch.device) -> Workspace:
        make = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device=device)
        return cls(
            tiling,
            make(rows, tiling.width),
            make(rows, tiling.width),
            make(rows, tiling.mlp),
            make(2, tiling.blocks, 64 * tiling.groups, dtype=torch.float32),
            torch.zeros(links, 8, dtype=torch.int32, device=device),
        )


@dataclass
class ChainRows:
    """What goes through a chain: x (R,d), changed in place; cos and sin of the rows, (R,D/2) each;
    index (B,R/B) int64, their positions."""

    x: Tensor
    rope: tuple[Tensor, Tensor]
    index: Tensor


@dataclass
class Slots:
    """What layers write for their attention: q (S,R,d), k, v (S,B,Hkv,T,D), lse (S,B,H,R) float32.
    S is the number of layers, or 1: then each layer overwrites the last one's (k, v: only where
    there is a single link).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor


def chain(
    workspace: Workspace,
    blocks: list,
    first: int,
    last: int,
    rows: ChainRows,
    eps: float,
    slots: Slots,
    heads: Tensor | None = None,
) -> None:
    """Rows go through links `first` to `last` of `blocks`.

    Link i is everything between the attention of block i - 1 and that of block i, up to q, k, v,
    rotated and written to the slots. Over several links, from 0 on, the attention in between is
    done too; the batch must have one row, and no mask. For a single link, heads (R,d) is the output
    of the previous block's attention. The norm after the last block is left to the caller.
    """
    tiling, x = workspace.tiling, rows.x
    kernel = compiled(tiling, x.device.index)
    base = max(first - 1, 0)
    given = blocks[base : last + 1]
    batch, kv_heads, length, _ = slots.k.shape[1:]
    assert x.is_contiguous() and len(given) <= tiling.layers and rows.index.is_contiguous()
    assert all(t.is_contiguous() for t in (*rows.rope, slots.q, slots.k, slots.v, slots.lse))
    several = first == 0 and batch == 1 and heads is None and len(slots.k) >= last
    assert first == last or several
    task = Task(
        len(x),
        len(x) // batch,
        length,
        len(given),
        first - base,
        last - base,
        eps,
        tiling.head**-0.5 * LOG2E,
    )
    model = b"".join(_layer(block, tiling) for block in given)
    inputs = _inputs(workspace, len(x), slots, workspace.heads if heads is None else heads)
    values = [
        ctypes.create_string_buffer(model, tiling.layers * (4 * 128 + 64)),
        ctypes.create_string_buffer(inputs, 6 * 128),
        _places(workspace, rows, slots, base),
        task,
    ]
    _launch(kernel, tiling, values, x.device)


def _place(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _layer(block, tiling: Tiling) -> bytes:
    """`Layer` of chain.cu."""
    vectors = block.attn_norm.weight, block.mlp_norm.weight, block.qkv_proj.bias
    return (
        tiles(block.out_proj.weight, tiling.out_cols)
        + tiles(block.gate_up_proj.weight, tiling.gate_cols)
        + tiles(block.down_proj.weight, tiling.out_cols)
        + pairs(block.qkv_proj.weight, tiling.head)
        + bytes((c_uint64 * 8)(*map(_place, vectors)))  # to a multiple of 64
    )


def _inputs(workspace: Workspace, rows: int, slots: Slots, heads: Tensor) -> bytes:
    """`Inputs` of chain.cu."""
    tiling = workspace.tiling
    return b"".join(
        (
            # no line beyond the last row: filling those with zeros takes TMA longer than reading
            *(tiles(t, rows) for t in (heads, workspace.gained, workspace.hidden)),
            *(tiles(t.flatten(0, -2), 64 * tiling.groups) for t in (slots.k, slots.v)),
            tiles(slots.q.flatten(0, -2), 64),
        )
    )


def _places(workspace: Workspace, rows: ChainRows, slots: Slots, base: int) -> Places:
    step = lambda t: t.stride(0) if len(t) > 1 else 0
    own = rows.x, workspace.gained, workspace.hidden, workspace.heads, workspace.squares
    rest = slots.q, slots.k, slots.v, slots.lse, *rows.rope, rows.index, workspace.met[base]
    return Places(
        *map(_place, (*own, *rest)),
        step(slots.q),
        step(slots.k),
        slots.k.stride(1),
        slots.k.stride(2),
        step(slots.lse),
    )


def _launch(kernel: c_void_p, tiling: Tiling, values: list, device: torch.device) -> None:
    arguments = (c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    asked = (Attribute * len(ASKED))()
    for attribute, kind in zip(asked, ASKED, strict=True):
        attribute.kind, attribute.value[0] = kind, 1
    config = Config(
        tiling.blocks,
        1,
        1,
        128 * tiling.groups + 128,
        1,
        1,
        tiling.shared,
        torch.cuda.current_stream(device).cuda_stream,
        ctypes.addressof(asked),
        len(asked),
    )
    _check(_driver().cuLaunchKernelEx(byref(config), kernel, arguments, None), "cuLaunchKernelEx")
