"""What a folder or a file of weights looks like when it is not the layout that this engine reads.

Nothing here opens a tensor: names of files and of tensors are enough to say what was found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from d2cache.families import FAMILIES, HARMLESS, Family

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
FREQUENCY = "frequency.safetensors"  # how often each token occurs in a corpus

ADAPTER = (
    "a LoRA adapter, not a model; merge it into its base model (merge_and_unload of peft) and "
    "save the result"
)
GGUF = "a GGUF file, the format of llama.cpp; use the *.safetensors of the same model"
# names of tensors -> how such weights are quantized, first match first
QUANTIZED = {
    r"\.g_idx$": "by GPTQ",
    r"\.qweight$": "by GPTQ or AWQ",
    r"\.(absmax|SCB|quant_map|nested_absmax)$|\.quant_state\.": "by bitsandbytes",
    r"\.weight_packed$": "by compressed-tensors",
    r"\.weight_scale(_inv)?$|\.input_scale$": "in 8-bit floats",
    r"\.biases$": "by MLX",
    r"\.(W_q|qzeros|scales|zero_point|zeros)$": "to a few bits",
}
# a tensor that joins several -> what it joins
FUSED = {
    r"(^|[._])(qkv_proj|att_proj|c_attn|query_key_value|W_?qkv|W_pack|in_proj)[._]": "q, k and v",
    r"(^|[._])(gate_up_proj|up_gate_proj|w12)[._]": "gate and up",
}


def no_weights(where: object, files: Iterable[str]) -> ValueError:
    """The error for a folder or repository with these files, which this engine cannot open."""
    return ValueError(f"{where} needs *.safetensors weights; found {_weights_among(list(files))}")


def no_config(where: object, files: Iterable[str]) -> ValueError:
    """The error for a folder or repository with these files and no config.json."""
    names = set(files)
    if any(name.startswith("adapter_") for name in names):
        return ValueError(f"{where} has no config.json; it holds {ADAPTER}")
    if any(name.endswith(".gguf") for name in names):
        return ValueError(f"{where} has no config.json; it holds {GGUF}")
    return ValueError(f"{where} has no config.json")


def _weights_among(files: list[str]) -> str:
    files = sorted(files)
    if any(file.startswith("adapter_") for file in files):
        return ADAPTER
    tensors = [f for f in files if f.endswith(".safetensors") and f not in (FREQUENCY, ONE_FILE)]
    if any(re.search(r"-\d+-of-\d+\.safetensors$", file) for file in tensors):
        return f"{tensors[0]} and no {INDEX}, which lists the shards; fetch it as well"
    if len(tensors) == 1:
        return f"only {tensors[0]}; if it is the whole model, rename it to {ONE_FILE}"
    if tensors:
        return f"{', '.join(tensors[:2])} and no {INDEX}; rename the whole model to {ONE_FILE}"
    for file in files:
        if file.endswith(".gguf"):
            return GGUF
        if re.search(r"\.(bin|pt|pth|ckpt|pkl)$", file):
            return f"only {file}, which could run code; convert it"
        if re.search(r"\.(npz|msgpack|h5|onnx|mlmodel)$", file):
            return f"only {file}, the format of another library; convert it"
    return "none"


def quantization_of(raw: dict) -> str | None:
    """The method that a config.json names for its quantized weights; None if they are plain."""
    for key in ("quantization_config", "quantization", "compression_config"):
        given = raw.get(key)
        if given:
            method = given.get("quant_method") if isinstance(given, dict) else given
            return str(method or key)[:40]
    return None


def missing(family: Family, found: Collection[str], wanted: Iterable[str], layers: int) -> str:
    """What a checkpoint looks like that has the tensors `found` and lacks `wanted`; "" if it looks
    like nothing known.

    layers: of config.json.
    """
    return (
        _adapted(found)
        or _quantized(found)
        or _fused(found)
        or _tied(family, found, list(wanted))
        or _other_family(family, found)
        or _other_depth(family, found, layers)
        or _prefixed(found, list(wanted))
    )


def unused(family: Family, extra: Collection[str], layers: int) -> str:
    """What is wrong with a checkpoint that has all tensors and these as well; "" if nothing is."""
    extra = sorted(name for name in extra if not HARMLESS.search(name))
    if not extra:
        return ""
    rest = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    return (
        _adapted(extra)
        or _quantized(extra)
        or _other_depth(family, extra, layers)
        or f"holds {extra[0][:100]}{rest}, which {family.model_type} as published does not have; "
        "the answers would be wrong without it: use a checkpoint of the published layout"
    )


def _first(pattern: str, names: Iterable[str]) -> str | None:
    return next((name[:100] for name in sorted(names) if re.search(pattern, name)), None)


def _adapted(found: Iterable[str]) -> str:
    name = _first(r"(^base_model\.model\.)|\.lora_|\.base_layer\.", found)
    return f"holds {ADAPTER} ({name})" if name else ""


def _quantized(found: Iterable[str]) -> str:
    for pattern, how in QUANTIZED.items():
        if name := _first(pattern, found):
            return f"holds weights quantized {how} ({name}); use a checkpoint that is not quantized"
    return ""


def _fused(found: Iterable[str]) -> str:
    for pattern, parts in FUSED.items():
        if name := _first(pattern, found):
            return f"joins {parts} in one tensor ({name}); store them one by one, as published"
    return ""


def _tied(family: Family, found: Collection[str], wanted: list[str]) -> str:
    (head,), (embedding,) = family.tensors["head.weight"], family.tensors["embed.weight"]
    if wanted != [head] or embedding not in found:
        return ""
    return (
        f"has no {head}: its head seems to be tied to the embedding; store a copy of {embedding} "
        f"as {head}"
    )


def _other_family(family: Family, found: Collection[str]) -> str:
    for other in FAMILIES.values():
        (embedding,) = other.tensors["embed.weight"]
        if other is not family and embedding in found:
            return (
                f"has tensors named as in {other.model_type} ({embedding}), and its config.json "
                f"says {family.model_type}; use the config.json that belongs to the weights"
            )
    return ""


def _other_depth(family: Family, found: Iterable[str], layers: int) -> str:
    (norm,) = family.tensors["attn_norm.weight"]
    pattern = re.escape(norm).replace("@", r"(\d{1,6})")
    numbers = [int(m[1]) for name in found if (m := re.fullmatch(pattern, name))]
    if not numbers or max(numbers) + 1 == layers:
        return ""
    return (
        f"holds {max(numbers) + 1} layers, and its config.json says {layers}; use the config.json "
        "that belongs to the weights"
    )


def _prefixed(found: Iterable[str], wanted: list[str]) -> str:
    """Where the names differ only in how they begin."""
    for name in wanted:
        ends = name.split(".")
        for first in range(len(ends) - 3):  # at least the layer, the part and what it is
            tail = ".".join(ends[first:])
            other = next((f for f in sorted(found) if f.endswith("." + tail) or f == tail), None)
            if other and other != name:
                return (
                    f"names its tensors in another way: {other[:100]} instead of {name}; rename "
                    "them as published"
                )
    return ""
