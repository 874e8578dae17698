"""Everything that differs between families of checkpoints: names, config keys, tokenizer.

No other file of the engine distinguishes LLaDA from Dream.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints are laid out. `@` in a tensor's name is the layer's number."""

    model_type: str  # as in config.json
    architecture: str  # as in config.json
    tensors: dict[str, tuple[str, ...]]  # our parameter -> their tensors, joined along the rows
    keys: dict[str, tuple[str, ...]]  # field of ModelConfig -> its keys in config.json, best first
    computes: dict[str, Any]  # keys of config.json that change the mathematics -> supported value
    fields: dict[str, Any]  # fields of ModelConfig that all checkpoints of the family share
    tokenizers: dict[tuple[str, ...], str]  # files -> the class of transformers that reads them
    padding: str | None = None  # a token that, if the tokenizer has it, fills answers to the end
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict  # sizes that follow from others


# Keys of other families' classes that change what a layer computes -> the value that changes
# nothing. The classes of these families do not read them, so whoever sets one has other code.
FOREIGN: dict[str, Any] = {
    "attention_multiplier": 1,
    "attn_logit_softcapping": None,
    "embedding_multiplier": 1,
    "final_logit_softcapping": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "mlp_bias": False,
    "n_routed_experts": 0,
    "num_experts": 0,
    "num_local_experts": 0,
    "partial_rotary_factor": 1,
    "qk_layernorm": False,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1,
    "rope_parameters.partial_rotary_factor": 1,
    "use_qk_norm": False,
}

# tensors that some writers store and no public code reads: they follow from config.json
HARMLESS = re.compile(r"(^|\.)(rotary_emb\.(original_)?inv_freq|position_ids)$")


def _complete_llada(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json with the sizes that LLaDA's class derives where they are missing or null."""
    sizes: dict[str, Any] = {}
    width, ratio = raw.get("d_model"), raw.get("mlp_ratio")
    if raw.get("mlp_hidden_size") is None and isinstance(width, int) and isinstance(ratio, int):
        sizes["mlp_hidden_size"] = ratio * width
    if raw.get("n_kv_heads") is None and raw.get("multi_query_attention") is True:
        sizes["n_kv_heads"] = 1
    return raw | sizes


LLADA = Family(
    model_type="llada",
    architecture="LLaDAModelLM",
    tensors={
        "embed.weight": ("model.transformer.wte.weight",),
        "norm.weight": ("model.transformer.ln_f.weight",),
        "head.weight": ("model.transformer.ff_out.weight",),
        "attn_norm.weight": ("model.transformer.blocks.@.attn_norm.weight",),
        "qkv_proj.weight": tuple(f"model.transformer.blocks.@.{x}_proj.weight" for x in "qkv"),
        "out_proj.weight": ("model.transformer.blocks.@.attn_out.weight",),
        "mlp_norm.weight": ("model.transformer.blocks.@.ff_norm.weight",),
        "gate_up_proj.weight": (
            "model.transformer.blocks.@.ff_proj.weight",
            "model.transformer.blocks.@.up_proj.weight",
        ),
        "down_proj.weight": ("model.transformer.blocks.@.ff_out.weight",),
    },
    keys={
        "layers": ("n_layers",),
        "width": ("d_model",),
        "heads": ("n_heads",),
        "kv_heads": ("n_kv_heads", "n_heads"),
        "mlp": ("mlp_hidden_size",),
        "vocab": ("embedding_size", "vocab_size"),
        "rope_theta": ("rope_theta", "rope_parameters.rope_theta"),
        "norm_eps": ("rms_norm_eps",),
        "mask_id": ("mask_token_id",),
        "eos_id": ("eos_token_id",),
        "max_length": ("max_sequence_length",),
    },
    computes={
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "block_type": "llama",
        "rope": True,
        "alibi": False,
        "attention_layer_norm": False,
        "scale_logits": False,
        "input_emb_norm": False,
        "weight_tying": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "clip_qkv": None,
        "bias_for_layer_norm": False,
        "layer_norm_with_affine": True,
        "block_group_size": 1,
        "rope_scaling": None,
        "rope_parameters.rope_type": "default",
    },
    fields={"family": "llada"},
    tokenizers={("tokenizer.json",): "PreTrainedTokenizerFast"},
    complete=_complete_llada,
)

DREAM = Family(
    model_type="Dream",
    architecture="DreamModel",
    tensors={
        "embed.weight": ("model.embed_tokens.weight",),
        "norm.weight": ("model.norm.weight",),
        "head.weight": ("lm_head.weight",),
        "attn_norm.weight": ("model.layers.@.input_layernorm.weight",),
        "qkv_proj.weight": tuple(f"model.layers.@.self_attn.{x}_proj.weight" for x in "qkv"),
        "qkv_proj.bias": tuple(f"model.layers.@.self_attn.{x}_proj.bias" for x in "qkv"),
        "out_proj.weight": ("model.layers.@.self_attn.o_proj.weight",),
        "mlp_norm.weight": ("model.layers.@.post_attention_layernorm.weight",),
        "gate_up_proj.weight": (
            "model.layers.@.mlp.gate_proj.weight",
            "model.layers.@.mlp.up_proj.weight",
        ),
        "down_proj.weight": ("model.layers.@.mlp.down_proj.weight",),
    },
    keys={
        "layers": ("num_hidden_layers",),
        "width": ("hidden_size",),
        "heads": ("num_attention_heads",),
        "kv_heads": ("num_key_value_heads", "num_attention_heads"),
        "mlp": ("intermediate_size",),
        "vocab": ("vocab_size",),
        "rope_theta": ("rope_theta", "rope_parameters.rope_theta"),
        "norm_eps": ("rms_norm_eps",),
        "mask_id": ("mask_token_id",),
        "eos_id": ("eos_token_id", "pad_token_id"),
        "max_length": ("max_position_embeddings",),
    },
    computes={
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "rope_scaling": None,
        "rope_parameters.rope_type": "default",
        "use_mrope": False,
        "block_size": None,  # block diffusion has the same model_type: causal across blocks
    },
    fields={"family": "dream", "shift": 1, "qkv_bias": True},
    tokenizers={
        ("tokenizer.json",): "PreTrainedTokenizerFast",
        ("vocab.json", "merges.txt"): "Qwen2Tokenizer",
    },
    padding="<|dlm_pad|>",  # DiffuCoder's, although its config.json gives the end of text
)

FAMILIES = {"llada": LLADA, "dream": DREAM}
