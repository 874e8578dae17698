"""How likely the model finds written tokens when it cannot see them."""

from __future__ import annotations

import torch
from torch import Tensor

from d2cache.canvas import Canvas
from d2cache.model import Block, Model
from d2cache.policies.base import KV
from d2cache.rows import Rows


class Shadow:
    """WINO's shadow block (arXiv 2507.18578, figure 2b) over the keys and values of this step.

    One row of [MASK] per position of the current block, at the position whose row predicts it.
    Each shadow row sees the whole canvas except the token that it predicts, and the other shadow
    rows; nothing on the canvas sees a shadow row, so this pass can follow the step's own and read
    the K,V that it left. `rows` counts the rows sent through the layers, 0 until `probability`
    is called.
    """

    def __init__(self, model: Model, kv: KV, canvas: Canvas):
        self.model, self.kv, self.canvas, self.rows = model, kv, canvas, 0

    def probability(self) -> Tensor:
        """(B,T): of each written token of the current block, unseen; inf elsewhere."""
        canvas, model = self.canvas, self.model
        inside = canvas.block & canvas.answer
        self.rows = canvas.block_length if canvas.given is None else int(inside.sum(1).amax())
        target = inside.int().argsort(dim=1, descending=True, stable=True)[:, : self.rows]
        index = (target - model.config.shift).clamp_min(0)  # a short block's fill may be below 0
        whole = torch.arange(self.rows, device=index.device).expand_as(index)
        valid = inside.gather(1, target)  # the last block may be short
        own = canvas.own[:, None] & (canvas.position != target[..., None])
        self.sees = torch.cat((own, valid[:, None].expand(-1, self.rows, -1)), dim=2)
        rows = Rows(
            index=index,
            valid=valid,
            head=whole,
            target=target,
            keys=None,
            position=(index - canvas.start[:, None]).clamp_min(0),
            full=False,
            fresh=whole,
            wanted=inside,
            new=inside,
        )
        logits = model(torch.full_like(canvas.tokens, canvas.mask_id), rows, self)
        logits[..., canvas.mask_id] = -torch.inf
        share = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        written = canvas.tokens.gather(1, target)
        share = share.gather(2, written[..., None])[..., 0]
        share = share.masked_fill(~rows.valid | (written == canvas.mask_id), torch.inf)
        return torch.full_like(canvas.tokens, torch.inf, dtype=share.dtype).scatter(
            1, target, share
        )

    def block(self, i: int, block: Block, x: Tensor, rows: Rows) -> Tensor:
        """Layer i on the shadow rows, as a policy runs it on its own."""
        q, k, v = block.qkv(x, rows.rope)
        k, v = torch.cat((self.kv.k[i], k), dim=2), torch.cat((self.kv.v[i], v), dim=2)
        x = x + block.attend(q, k, v, self.sees)
        return x + block.mlp(x)
