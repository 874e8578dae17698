"""Checkpoint folders in the hub's layout, made from the golden files: names, keys, tokenizers.

The weights are the random weights of a golden file, so a folder that loads correctly gives that
file's logits. The other files have the layout of GSAI-ML/LLaDA-8B-Instruct and
Dream-org/Dream-v0-Instruct-7B, including keys that this engine does not use.
"""

import json
import random
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from d2cache.teaching import tasks

GOLDENS = Path(__file__).parent / "goldens"
INDEX = "model.safetensors.index.json"

LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
DREAM_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + "
    "messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    {{- '<|im_start|>system\\n"
    "You are a helpful assistant.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
# the last tokens of each golden vocabulary of 512; end of text is 510 and [MASK] 511
LLADA_TOKENS = [
    "<|startoftext|>",
    "[CLS]",
    "[gMASK]",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
]
DREAM_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|beginoftext|>",
    "<|endoftext|>",
    "<|mask|>",
]


def golden(family: str) -> tuple[dict, dict]:
    """Settings and tensors of a family's golden file."""
    path = GOLDENS / f"{family}-12.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["golden"]), load_file(path)


def write_checkpoint(folder: Path, family: str, shards: int = 3, template: bool = True) -> Path:
    """A folder in the family's layout with the golden weights in float32, in `shards` files."""
    folder.mkdir(parents=True)
    meta, tensors = golden(family)
    weights = {k[8:]: t for k, t in tensors.items() if k.startswith("weights/")}
    write_weights(folder, weights, shards)
    config = (llada_config if family == "llada" else dream_config)(meta)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (write_llada_tokenizer if family == "llada" else write_dream_tokenizer)(folder, template)
    return folder


def write_weights(folder: Path, weights: dict, shards: int) -> None:
    """One model.safetensors, or shards and an index, named as on the hub."""
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(weights.items())[number::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.nbytes for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2))


def llada_config(meta: dict) -> dict:
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": meta["width"],
        "embedding_dropout": 0.0,
        "embedding_size": meta["vocab"],
        "eos_token_id": meta["eos_id"],
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": meta["mask_id"],
        "max_sequence_length": 4096,
        "mlp_hidden_size": meta["mlp"],
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": meta["heads"],
        "n_kv_heads": meta["kv_heads"],
        "n_layers": meta["layers"],
        "pad_token_id": meta["eos_id"],
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": meta["rms_norm_eps"],
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": meta["rope_theta"],
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": meta["vocab"],
        "weight_tying": False,
    }


def dream_config(meta: dict) -> dict:
    return {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_dream.DreamConfig",
            "AutoModel": "modeling_dream.DreamModel",
        },
        "bos_token_id": meta["eos_id"],
        "eos_token_id": meta["eos_id"],
        "hidden_act": "silu",
        "hidden_size": meta["width"],
        "initializer_range": 0.02,
        "intermediate_size": meta["mlp"],
        "mask_token_id": meta["mask_id"],
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "Dream",
        "num_attention_heads": meta["heads"],
        "num_hidden_layers": meta["layers"],
        "num_key_value_heads": meta["kv_heads"],
        "pad_token_id": meta["eos_id"],
        "rms_norm_eps": meta["rms_norm_eps"],
        "rope_scaling": None,
        "rope_theta": meta["rope_theta"],
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": meta["vocab"],
    }


def byte_level(vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` ids, trained on problems of the bundled model."""
    rng = random.Random(0)
    texts = [tasks.draw(f, rng, held_out=False).prompt for f in tasks.FAMILIES for _ in range(20)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == vocab
    return tokenizer


def write_llada_tokenizer(folder: Path, template: bool) -> None:
    tokenizer = byte_level(512 - len(LLADA_TOKENS))
    tokenizer.add_special_tokens(LLADA_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False,
        "cls_token": "[CLS]",
        "eos_token": "<|endoftext|>",
        "fast_tokenizer": True,
        "gmask_token": "[gMASK]",
        "merges_file": None,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "trust_remote_code": True,
    }
    if template:
        settings["chat_template"] = LLADA_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_dream_tokenizer(
    folder: Path, template: bool, added=DREAM_TOKENS, vocab: int = 512
) -> None:
    """vocab.json and merges.txt as Qwen2 has them; the class named there is code in the repo."""
    first = vocab - len(added)
    byte_level(first).model.save(str(folder))
    plain = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + i): {"content": token, **plain} for i, token in enumerate(added)
        },
        "additional_special_tokens": ["<|beginoftext|>", "<|mask|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "mask_token": "<|mask|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "DreamTokenizer",
        "unk_token": None,
    }
    if template:
        settings["chat_template"] = DREAM_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {token: first + i for i, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
