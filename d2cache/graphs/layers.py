"""`Model.forward` while a step is traced: kernels between the products where they fit."""

from __future__ import annotations

from torch import Tensor

from d2cache import ops
from d2cache.graphs.blocks import KernelBlock, UnprojectedBlock
from d2cache.graphs.rules import LayerRules
from d2cache.graphs.support import kernels
from d2cache.model import Model
from d2cache.policies.base import CachePolicy
from d2cache.rows import Rows


def run_layers(tokens: Tensor, rows: Rows, rules: LayerRules) -> Tensor:
    """tokens (B,T) -> logits (B,Q,V) of the rows, which have their rope."""
    x = rules.model.embed(tokens.gather(1, rows.index))
    if not rules.fused or not _builds_layers_as_the_base_does(rules.policy):
        x = _by_policy(x, rows, rules, 0)
    else:
        x = _as_the_base_does(x, rows, rules)
    return logits_of(x, rows, rules)


def logits_of(x: Tensor, rows: Rows, rules: LayerRules) -> Tensor:
    """The last layer's outputs x (B,R,d) -> logits (B,Q,V)."""
    model, x = rules.model, ops.rows_at(x, rows.head)
    if not rules.fused:
        return model.head(model.norm(x))
    return model.head(kernels.add_norm(x, None, model.norm.weight, model.config.norm_eps)[1])


def run_on_rows(tokens: Tensor, rows: Rows, rules: LayerRules) -> None:
    """Of a policy that restarts: all layers on these rows, and its tests; outputs are kept."""
    model, policy = rules.model, rules.policy
    x = model.embed(tokens.gather(1, rows.index))
    if rules.fused:
        x = _as_the_base_does(x, rows, rules)
    else:
        for i, block in enumerate(model.blocks):
            x = CachePolicy.block(policy, i, block, x, rows)
    policy.watch(0, list(model.blocks), rows)
    policy.leave(x, rows)


def run_again(tokens: Tensor, rows: Rows, rules: LayerRules, first: int) -> None:
    """Of a policy that restarts: its own layers from `first` on, from the input that it keeps."""
    policy = rules.policy
    if first:
        x = ops.rows_at(policy.hidden[first], rows.index)
    else:  # nothing has run yet
        x = rules.model.embed(tokens.gather(1, rows.index))
    policy.leave(_by_policy(x, rows, rules, first), rows)


def _as_the_base_does(x: Tensor, rows: Rows, rules: LayerRules) -> Tensor:
    """The base's layers by kernels, in as few of them as the model and the policy allow."""
    if rules.can_chain_all() and (tiling := rules.tiling(rules.model.config.layers)):
        return _in_one_kernel(x, rows, rules, tiling)
    if tiling := rules.tiling(2):
        return _link_by_link(x, rows, rules, tiling)
    return _between_products(x, rows, rules)


def _builds_layers_as_the_base_does(policy: CachePolicy) -> bool:
    own = type(policy)
    return own.block is CachePolicy.block and own.project is CachePolicy.project


def _by_policy(x: Tensor, rows: Rows, rules: LayerRules, first: int) -> Tensor:
    """The policy's own layers from `first` on, over blocks that use kernels where they fit."""
    policy = rules.policy
    run = policy.refresh if policy.restarts else policy.block
    for i, block in enumerate(rules.model.blocks[first:], first):
        rules.layer = i
        x = run(i, KernelBlock(block) if rules.fused else block, x, rows)
    return x


def _between_products(x: Tensor, rows: Rows, rules: LayerRules) -> Tensor:
    """The base's layers, everything between two products in one kernel each."""
    model, policy = rules.model, rules.policy
    eps, delta = model.config.norm_eps, None
    for i, block in enumerate(model.blocks):
        rules.layer = i
        x, y = kernels.add_norm(x, delta, block.attn_norm.weight, eps)
        policy.enter(i, x, rows)
        qkv = rules.product(y, block.qkv_proj)
        k, v = policy.kv.at(i)
        q = kernels.rotate_write(qkv, rows.rope, rows.index, k, v, model.config.heads)
        delta = policy.attend(i, KernelBlock(block), q, k, v, rows)
        x, y = kernels.add_norm(x, delta, block.mlp_norm.weight, eps)
        delta = block.down_proj(kernels.swiglu(block.gate_up_proj(y)))
    return x if delta is None else x + delta


def _in_one_kernel(x: Tensor, rows: Rows, rules: LayerRules, tiling: kernels.Tiling) -> Tensor:
    """The base's layers, attention included, in one kernel; then the policy's `attend`."""
    chain, kv = _Chain(x, rows, rules.model, tiling), rules.policy.kv
    chain.link(0, rules.model.config.layers, kernels.Slots(rules.q, kv.k, kv.v, rules.lse))
    rules.attend_afterwards()
    return chain.rows.x.view_as(x)


def _link_by_link(x: Tensor, rows: Rows, rules: LayerRules, tiling: kernels.Tiling) -> Tensor:
    """The base's layers, everything between two attentions in one kernel; attention is the
    policy's."""
    model, policy, heads = rules.model, rules.policy, None
    chain = _Chain(x, rows, model, tiling)
    for i, block in enumerate(model.blocks):
        rules.layer = i
        k, v = policy.kv.at(i)
        q, lse = (rules.slot(t) for t in (rules.q, rules.lse))
        chain.link(i, i, kernels.Slots(q[None], k[None], v[None], lse[None]), heads)
        policy.enter(i, chain.rows.x.view_as(x), rows)
        attended = policy.attend(i, UnprojectedBlock(block), rules.query(), k, v, rows)
        heads = attended.heads.flatten(0, 1)
    last, kv = len(model.blocks), policy.kv
    chain.link(last, last, kernels.Slots(rules.q, kv.k, kv.v, rules.lse), heads)
    return chain.rows.x.view_as(x)


class _Chain:
    """Calls of `kernels.chain` over one workspace."""

    def __init__(self, x: Tensor, rows: Rows, model: Model, tiling: kernels.Tiling):
        links, count = model.config.layers + 1, rows.index.numel()
        rope = tuple(t.flatten(0, 2) for t in rows.rope)
        self.workspace = kernels.Workspace.made(tiling, count, links, rows.index.device)
        self.rows = kernels.ChainRows(x.flatten(0, 1), rope, rows.index)
        self.blocks, self.eps = list(model.blocks), model.config.norm_eps

    def link(self, first: int, last: int, slots: kernels.Slots, heads: Tensor | None = None):
        kernels.chain(self.workspace, self.blocks, first, last, self.rows, self.eps, slots, heads)
