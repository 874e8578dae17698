"""One bidirectional transformer; its config makes it LLaDA or Dream.

Letters in shape comments: B batch, T canvas positions, R recomputed rows, Q predicting rows,
H heads, D head width, d model width, V vocabulary, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2cache import plain, prompts
from d2cache.families import FAMILIES
from d2cache.ops import attention, rows_at
from d2cache.rows import Rows


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a masked-diffusion transformer; sizes in elements. ValueError for a bad one.

    Numbers of numpy and torch are kept as plain ones.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    rope_theta: float
    norm_eps: float
    mask_id: int
    eos_id: int
    max_length: int = 4096
    shift: int = 0  # logits at position i predict token i + shift
    name: str = "llada"
    qkv_bias: bool = False  # biases on the q, k and v projections
    family: str = "llada"  # key of FAMILIES: the names its checkpoints use

    def __post_init__(self):
        # bounds far beyond any real model: a broken or hostile config must not fill the memory
        sizes = dict.fromkeys(("width", "heads", "kv_heads", "mlp", "vocab", "max_length"), 1 << 20)
        for field, most in {"layers": 1 << 10, **sizes}.items():
            value = self._made_plain(field, plain.whole)
            if value is None or not 1 <= value <= most:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r:.80}; it must be a whole number from 1 to "
                    f"{most}"
                )
        for field in ("rope_theta", "norm_eps"):
            value = self._made_plain(field, plain.number)
            if value is None or not 0 < value < math.inf:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r:.80}; it must be a number above 0"
                )
        if self.width % self.heads or self.head_width % 2:
            raise ValueError(
                f"width {self.width} does not split into {self.heads} heads of even width"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads")
        for field in ("mask_id", "eos_id"):
            value = self._made_plain(field, plain.whole)
            if value is None or not 0 <= value < self.vocab:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r:.80}; the vocabulary has ids 0 to "
                    f"{self.vocab - 1}"
                )
        if self.mask_id == self.eos_id:
            raise ValueError(
                f"mask_id and eos_id are both {self.mask_id}; [MASK] and the end of text must be "
                "two tokens"
            )
        if self._made_plain("shift", plain.whole) not in (0, 1):
            raise ValueError(f"shift is {self.shift!r:.80}; it must be 0 or 1")
        if not isinstance(self.name, str) or len(self.name) > 200:
            raise ValueError(f"name is {str(self.name)[:20]!r}; it must be a short text")
        if type(self.qkv_bias) is not bool:
            raise ValueError(f"qkv_bias is {repr(self.qkv_bias)[:20]}; it must be True or False")
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise ValueError(
                f"family is {repr(self.family)[:20]}; it must be one of {', '.join(FAMILIES)}"
            )

    def _made_plain(self, field: str, convert: Callable[[object], Any]) -> Any:
        """The field's value as a plain one, kept like that; None if it has the wrong type."""
        value = convert(getattr(self, field))
        if value is not None:
            object.__setattr__(self, field, value)
        return value

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def work(self, rows, keys, fresh) -> tuple:
        """The five counts that `flops` takes, of `rows` rows through every layer.

        keys: how many keys each row attends to. fresh: rows whose token id is new; layer 0's K,V
        depend on id and position alone, so only theirs are computed. Numbers, arrays or tensors.
        """
        whole = self.layers * rows
        return whole - rows + fresh, whole - rows + fresh, whole, whole, whole * keys

    def flops(self, keys, values, attention, mlp, scores, predicted):
        """Floating-point operations of a step (2 per multiply-add), matrix products only.

        Counts of rows x layers whose K, V, attention output and MLP output were computed, of
        query-key pairs that met, and of rows through the LM head; numbers or arrays. The total is
        what `torch.utils.flop_counter` finds for one row, but for two things beside the layers:
        certainty density, a convolution, and d2's rollout, two operations per weight of its maps;
        and in 16 bits, the scores of attention maps are made twice, in float32 for the map.
        Not counted either: what fills up shorter rows of a batch to the longest, keys in a short
        last block, and layers that a GPU runs twice (see `CachePolicy.restarts`).
        """
        d, kv = self.width, self.kv_heads * self.head_width
        projections = (keys + values) * d * kv + 2 * attention * d * d
        return 2 * (
            projections + 2 * scores * d + 3 * mlp * d * self.mlp + predicted * d * self.vocab
        )


CONFIGS = {
    "llada-8b": ModelConfig(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=32,
        mlp=12288,
        vocab=126464,
        rope_theta=500000.0,
        norm_eps=1e-5,
        mask_id=126336,
        eos_id=126081,
        name="llada-8b",
    ),
    "dream-7b": ModelConfig(
        layers=28,
        width=3584,
        heads=28,
        kv_heads=4,
        mlp=18944,
        vocab=152064,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        mask_id=151666,
        eos_id=151643,
        max_length=131072,
        name="dream-7b",
        shift=1,
        qkv_bias=True,
        family="dream",
    ),
    "tiny": ModelConfig(
        layers=8,
        width=256,
        heads=4,
        kv_heads=4,
        mlp=704,
        vocab=1024,
        rope_theta=10000.0,
        norm_eps=1e-5,
        mask_id=1023,
        eos_id=1022,
        max_length=1024,
        name="tiny",
    ),
}


class Linear(nn.Linear):
    """A linear layer whose weight can be laid out for fast products on a CPU.

    torch computes float32 products with MKL, which leaves half the vector width of an AMD EPYC
    idle. oneDNN, which ships with torch, uses all of it; it reads a weight that is stored column by
    column in place, and would copy one stored row by row each time.
    """

    def lay_out(self) -> None:
        """Store the weight column by column where that makes products faster; values are kept."""
        w = self.weight
        if w.is_cpu and w.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            w.data = w.detach().t().contiguous().t()

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias)

    def part(self, x: Tensor, some: slice, out: Tensor | None = None) -> Tensor:
        """Only some of the outputs, bit for bit as among all of them; written to `out` (R,outputs)
        if given, for rows x (R,d)."""
        w, bias = self.weight[some], self.bias
        if out is not None:
            if bias is None:
                return torch.mm(x, w.t(), out=out)
            return torch.addmm(bias[some], x, w.t(), out=out)
        if not self.weight.is_contiguous():
            w = w.t().contiguous().t()  # oneDNN is far slower on columns with gaps
        return _product(x, w, None if bias is None else bias[some])


def _product(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    by_columns = w.is_cpu and w.dtype == torch.float32 and not w.is_contiguous()
    if by_columns and torch.is_inference_mode_enabled():  # oneDNN's product has no gradient
        return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return F.linear(x, w, bias)


class Block(nn.Module):
    """One layer as pure pieces, which a cache policy puts together."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, kv = config.width, config.kv_heads * config.head_width
        self.config = config
        self.attn_norm = nn.RMSNorm(d, eps=config.norm_eps)
        self.qkv_proj = Linear(d, d + 2 * kv, bias=config.qkv_bias)  # q, k, v in one product
        self.out_proj = Linear(d, d, bias=False)
        self.mlp_norm = nn.RMSNorm(d, eps=config.norm_eps)
        self.gate_up_proj = Linear(d, 2 * config.mlp, bias=False)
        self.down_proj = Linear(config.mlp, d, bias=False)

    def qkv(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(B,R,d) -> q (B,H,R,D) and k, v (B,Hkv,R,D); q and k already rotated."""
        c = self.config
        y = self.qkv_proj(self.attn_norm(x)).unflatten(-1, (-1, c.head_width)).transpose(1, 2)
        qk, v = y.split((c.heads + c.kv_heads, c.kv_heads), dim=1)
        q, k = rotate(qk, rope).split((c.heads, c.kv_heads), dim=1)
        return q, k, v

    def query(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B,R,d) -> q (B,H,R,D) alone; rotated, unless rope is None."""
        q = self._heads(x, 0, self.config.heads)
        return q if rope is None else rotate(q, rope)

    def key_value(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(B,R,d) -> k (rotated), v (B,Hkv,R,D) alone."""
        c = self.config
        k, v = self._heads(x, c.heads, c.heads + 2 * c.kv_heads).chunk(2, dim=1)
        return rotate(k, rope), v

    def value(self, x: Tensor) -> Tensor:
        """(B,R,d) -> v (B,Hkv,R,D) alone."""
        c = self.config
        return self._heads(x, c.heads + c.kv_heads, c.heads + 2 * c.kv_heads)

    def _heads(self, x: Tensor, first: int, last: int) -> Tensor:
        """Heads first to last of q, k, v side by side, (B,last-first,R,D), not rotated."""
        width = self.config.head_width
        y = self.qkv_proj.part(self.attn_norm(x), slice(first * width, last * width))
        return y.unflatten(-1, (-1, width)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
        """q (B,H,R,D) over all k, v (B,Hkv,T,D) -> (B,R,d).

        keys bool: which keys count, (B,T) for all queries or (B,R,T) for each.
        """
        return self.project_out(attention(q, k, v, keys))

    def project_out(self, y: Tensor) -> Tensor:
        """Heads (B,H,R,D) -> (B,R,d): concatenated and sent through the output projection."""
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        """(B,R,d) -> (B,R,d), the SwiGLU half of the layer."""
        gate, up = self.gate_up_proj(self.mlp_norm(x)).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class LayerRunner(Protocol):
    """What `Model.forward` asks to run each layer: a cache policy, or a `Shadow`."""

    def block(self, i: int, block: Block, x: Tensor, rows: Rows) -> Tensor:
        """Layer i on the rows: x (B,R,d) -> (B,R,d)."""
        ...


class Model(nn.Module):
    """Embedding, blocks, norm and LM head.

    `d2cache.load` attaches `tokenizer` and `frequency`: share of each token id in a corpus, (V,)
    float, or None where the folder has none. `weights` is "fp8" for 8-bit weights (see
    `d2cache.quantize`), and None for weights of the model's dtype.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tokenizer = None
        self.frequency: Tensor | None = None
        self.weights: str | None = None
        self.embed = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = Linear(config.width, config.vocab, bias=False)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def lay_out(self) -> Model:
        """Lay out the weights for fast products on this device, see `Linear`; returns the model."""
        for layer in self.modules():
            if isinstance(layer, Linear):
                layer.lay_out()
        return self

    def forward(self, tokens: Tensor, rows: Rows, runner: LayerRunner) -> Tensor:
        """tokens (B,T) int64 -> logits (B,Q,V) of the rows that predict.

        Only `rows` go through the layers; what the other positions contribute is decided by the
        runner, which is called once per layer.
        """
        x = self.embed(tokens.gather(1, rows.index))
        rows = replace(rows, rope=self.rotary(rows.position))
        for i, block in enumerate(cast(Iterable[Block], self.blocks)):
            x = runner.block(i, block, x, rows)
        return self.head(self.norm(rows_at(x, rows.head)))

    def rotary(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """positions (B,R) -> cos and sin, each (B,1,R,D/2), in the model's dtype."""
        c = self.config
        # angles in at least float32: bf16 cannot distinguish neighbouring positions
        wide = torch.promote_types(self.dtype, torch.float32)
        power = torch.arange(0, c.head_width, 2, device=position.device, dtype=wide) / c.head_width
        angle = (position[..., None] * c.rope_theta**-power)[:, None]
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    @overload
    def encode(self, given: str | prompts.Chat) -> Tensor: ...

    @overload
    def encode(self, given: list[str] | list[prompts.Chat]) -> list[Tensor]: ...

    def encode(self, given: Any) -> Tensor | list[Tensor]:
        """A prompt -> its token ids (P,) int64; several prompts -> a list of them.

        given: a text, which is the message of a user; or a chat, a list of messages
        {"role": "system", "content": "Be brief."} whose roles are those of the checkpoint's chat
        template; or a list of texts or chats, as `generate` takes them for a batch. A chat template
        wraps the messages. Without one, a text gets the special tokens that the tokenizer itself
        puts round it, and a chat is refused.

        Raises ValueError for text that is not valid Unicode or contains the text of a special
        token, which would otherwise act as that token.
        """
        tokenizer = self._needs_tokenizer()
        if prompts.are_several(given):
            return [prompts.encoded(tokenizer, self.config.mask_id, one) for one in given]
        return prompts.encoded(tokenizer, self.config.mask_id, given)

    @overload
    def encode_gaps(self, text: str) -> Tensor: ...

    @overload
    def encode_gaps(self, text: list[str]) -> list[Tensor]: ...

    def encode_gaps(self, text: str | list[str]) -> Tensor | list[Tensor]:
        """A text with gaps -> token ids (P,) int64 with `mask_id` in the gaps; several -> a list.

        A run of underscores that touches no letter or digit is a gap, and gets as many masks as it
        has underscores: "He buys ___ of 4 apples." leaves three tokens open. The space before a gap
        belongs to it, because a token carries its leading space. `a_b`, `__init__` and `x_` are
        text. The text is encoded as it is, without the chat template: a document, not a question.

        Raises ValueError for a text without a gap, and as `encode` does.
        """
        tokenizer = self._needs_tokenizer()
        if isinstance(text, str):
            return prompts.with_gaps(tokenizer, self.config.mask_id, text)
        return [prompts.with_gaps(tokenizer, self.config.mask_id, one) for one in text]

    def decode(self, ids) -> str:
        """Answer ids (G,) -> text up to the first end-of-text token, without masks."""
        tokenizer = self._needs_tokenizer()
        ids = torch.as_tensor(ids).tolist()
        if ids and not 0 <= min(ids) <= max(ids) < self.config.vocab:
            raise ValueError(
                f"ids go from {min(ids)} to {max(ids)}; the vocabulary has ids 0 to "
                f"{self.config.vocab - 1}"
            )
        ids = ids[: ids.index(self.config.eos_id)] if self.config.eos_id in ids else ids
        kept = [i for i in ids if i != self.config.mask_id]
        return tokenizer.decode(kept, skip_special_tokens=True)

    def _needs_tokenizer(self):
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer; put tokenizer.json next to config.json, "
                "or pass token ids"
            )
        return self.tokenizer


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of (B,H,R,D), first half paired with second half."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
