"""From a layer's attention to that of the next in one kernel, compiled from chain.cu when it is
first asked for.

Made for chips with wgmma and TMA (compute capability 9.0), bfloat16 and up to 128 rows. NVRTC,
which compiles, comes with torch.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import byref, c_char_p, c_float, c_int, c_uint, c_uint64, c_void_p
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
MOST_ROWS = 128
SHARED = 227 * 1024  # bytes that a block can have
DEEP = 64  # of depth at a time
X_STAGES = 6  # rows come from L2 in the time of about four turns


@dataclass(frozen=True)
class Form:
    """How the products of a layer are cut into blocks; the names are those of chain.cu."""

    width: int
    mlp: int
    qkv: int
    out_cols: int
    gate_cols: int
    qkv_cols: int
    parts: int
    groups: int
    bias: int

    @property
    def most_cols(self) -> int:
        return max(self.out_cols, self.gate_cols, self.qkv_cols)

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
        tiles = lambda cols, each: -(-cols // each)
        return max(
            tiles(self.width, self.out_cols) * self.parts,
            tiles(self.mlp, self.gate_cols),
            tiles(self.qkv, self.qkv_cols),
            64 * self.groups,  # a block norms a row
        )


def form_of(width: int, mlp: int, qkv: int, bias: bool, rows: int, chip: int) -> Form | None:
    """The form for these sizes on a chip of so many multiprocessors; None where there is none."""
    if not chip:
        return None
    parts = 2  # one leaves each block few columns for all rows, three make more sums to add
    each = lambda cols: -(-cols // (8 * chip)) * 8
    form = Form(
        width, mlp, qkv, each(width * parts), each(mlp), each(qkv), parts,
        1 if rows <= 64 else 2, int(bias),
    )  # fmt: skip
    fits = not (width % DEEP or mlp % DEEP or qkv % 8) and form.most_cols <= 256
    fits = fits and form.gate_cols <= 128  # sums of gate and up fill the registers: spilled, slower
    return form if fits and 0 < rows <= MOST_ROWS and form.blocks <= chip else None


@lru_cache
def chip_of(device: torch.device) -> int:
    """Multiprocessors of a device that chain.cu is made for, else 0."""
    if device.type != "cuda" or torch.version.cuda is None:
        return 0
    one = torch.cuda.get_device_properties(device)
    return one.multi_processor_count if (one.major, one.minor) == (9, 0) else 0


@lru_cache
def served(width: int, mlp: int, qkv: int, bias: bool, rows: int, device: torch.device):
    """The form for these sizes, its kernel compiled; None where torch must do the products."""
    form = form_of(width, mlp, qkv, bias, rows, chip_of(device))
    if form is not None:
        try:
            with torch.cuda.device(device):
                compiled(form, device.index)
        except (OSError, RuntimeError) as error:  # no NVRTC, or one that knows not this chip
            LOG.warning("products by torch: %s", str(error).splitlines()[0])
            return None
    return form


class Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [
        *((name, c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", c_void_p), ("attributes", c_void_p), ("count", c_uint),
    ]  # fmt: skip


class Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = [("kind", c_int), ("pad", c_int), ("value", c_uint * 16)]


class Places(ctypes.Structure):
    _fields_ = [
        (name, c_void_p)
        for name in ("x", "normed", "hidden", "qkv", "sums", "norm", "next_norm", "bias", "met")
    ]


# CU_LAUNCH_ATTRIBUTE_COOPERATIVE, for blocks that meet must all be there; and
# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: weights are read before rows are there
ASKED = 2, 6
MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} failed with code {code}")


@lru_cache
def _driver():
    return ctypes.CDLL("libcuda.so.1")


def _multiply(wide: int) -> str:
    """`mma` of chain.cu for so many columns: one wgmma."""
    count = wide // 2
    names = ", ".join(f"%{i}" for i in range(count))
    sums = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return (
        f"template <> __device__ __forceinline__ void mma<{wide}>(float* d, unsigned long long a, "
        "unsigned long long b, int add) { asm volatile("
        f'"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 2}, 0;\\n'
        f"wgmma.mma_async.sync.aligned.m64n{wide}k16.f32.bf16.bf16 {{{names}}}, "
        f'%{count}, %{count + 1}, p, 1, 1, 0, 0;\\n}}" : {sums} : "l"(a), "l"(b), "r"(add)); }}\n'
    )


def source(form: Form) -> tuple[str, dict[str, int]]:
    """What is compiled, and its macros."""
    widths = sorted({form.out_cols, form.gate_cols, form.qkv_cols})
    text = "template <int N> __device__ void mma(float*, unsigned long long, "
    text += "unsigned long long, int);\n" + "".join(map(_multiply, widths))
    text += Path(__file__).with_name("chain.cu").read_text("utf-8")
    derived = ("most_cols", "x_stages", "w_stages")
    macros = asdict(form) | {name: getattr(form, name) for name in derived}
    return text, {name.upper(): value for name, value in macros.items()}


@lru_cache
def compiled(form: Form, device: int) -> c_void_p:
    """The kernel of this form on the current device; RuntimeError or OSError where that fails."""
    nvrtc = ctypes.CDLL(f"libnvrtc.so.{torch.version.cuda.split('.')[0]}")
    text, macros = source(form)
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
    torch.cuda.current_stream()  # a context must be there
    _check(driver.cuModuleLoadData(byref(module), binary), "cuModuleLoadData")
    _check(driver.cuModuleGetFunction(byref(kernel), module, b"chain"), "cuModuleGetFunction")
    _check(driver.cuFuncSetAttribute(kernel, MOST_SHARED, form.shared), "cuFuncSetAttribute")
    return kernel


def tiles(matrix: Tensor, lines: int) -> bytes:
    """CUtensorMap of a bfloat16 matrix in tiles of `lines` x 64, in the order wgmma reads."""
    room = (ctypes.c_char * 192)()
    aligned = (ctypes.c_char * 128).from_buffer(room, -ctypes.addressof(room) % 64)
    size, stride = (c_uint64 * 2)(*matrix.shape[::-1]), (c_uint64 * 1)(2 * matrix.stride(0))
    box, steps = (c_uint * 2)(DEEP, lines), (c_uint * 2)(1, 1)
    bfloat16, swizzle_128, promotion_256 = 9, 3, 3
    made = _driver().cuTensorMapEncodeTiled(
        aligned, bfloat16, 2, c_void_p(matrix.data_ptr()), size, stride, box, steps, 0,
        swizzle_128, promotion_256, 0,
    )  # fmt: skip
    _check(made, "cuTensorMapEncodeTiled")
    return bytes(aligned)


@dataclass
class Room:
    """What the blocks of a chain pass on: normed (R,d), hidden (R,MLP), sums (parts,R,d) float32,
    and for each launch how many have come to each meeting, (launches,8) int32, zero at first."""

    form: Form
    normed: Tensor
    hidden: Tensor
    sums: Tensor
    met: Tensor

    @classmethod
    def made(cls, form: Form, rows: int, launches: int, device) -> Room:
        make = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device=device)
        return cls(
            form, make(rows, form.width), make(rows, form.mlp),
            make(form.parts, rows, form.width, dtype=torch.float32),
            torch.zeros(launches, 8, dtype=torch.int32, device=device),
        )  # fmt: skip


def chain(
    room: Room, turn: int, x: Tensor, eps: float, heads: Tensor | None, block, norm: Tensor,
    qkv: nn.Linear | None, out: Tensor | None,
) -> None:  # fmt: skip
    """x (R,d), changed in place, goes through what a layer does after its attention, and normed
    by `norm` through the next layer's q, k, v into out (R,QKV).

    heads (R,d): what `block` attended to; None: there is no layer before. qkv None: none after,
    and room.normed holds x normed. turn: which launch of the room this is.
    """
    form, rows = room.form, len(x)
    kernel = compiled(form, x.device.index)
    assert x.is_contiguous() and (heads is None or heads.stride(-1) == 1)
    lines = 64 * form.groups
    any_map = tiles(room.normed, lines)
    if block is None:
        matrices = any_map * 3
    else:
        matrices = (
            tiles(block.out_proj.weight, form.out_cols)
            + tiles(block.gate_up_proj.weight, form.gate_cols)
            + tiles(block.down_proj.weight, form.out_cols)
        )
    matrices += any_map if qkv is None else tiles(qkv.weight, form.qkv_cols)
    inputs = (any_map if heads is None else tiles(heads, lines)) + any_map
    inputs += tiles(room.hidden, lines)
    place = lambda t: None if t is None else t.data_ptr()
    places = Places(
        *map(place, (x, room.normed, room.hidden, out, room.sums)),
        place(None if block is None else block.mlp_norm.weight), place(norm),
        place(None if qkv is None else qkv.bias),
        place(room.met[turn]),
    )  # fmt: skip
    values = [
        ctypes.create_string_buffer(matrices, 512), ctypes.create_string_buffer(inputs, 384),
        places, c_int(rows), c_float(eps), c_int(block is not None), c_int(qkv is not None),
    ]  # fmt: skip
    pointers = (c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    asked = (Attribute * len(ASKED))()
    for attribute, kind in zip(asked, ASKED, strict=True):
        attribute.kind, attribute.value[0] = kind, 1
    config = Config(
        form.blocks, 1, 1, 128 * form.groups + 128, 1, 1, form.shared,
        torch.cuda.current_stream(x.device).cuda_stream, ctypes.addressof(asked), len(asked),
    )  # fmt: skip
    _check(_driver().cuLaunchKernelEx(byref(config), kernel, pointers, None), "cuLaunchKernelEx")
