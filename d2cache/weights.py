"""Checkpoints: a folder in the hub's layout -> Model. Executes nothing that a folder brings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from d2cache.families import FAMILIES, Family
from d2cache.model import Model, ModelConfig

TINY = Path(__file__).resolve().parent.parent / "assets" / "tiny"


def load(name: str = "tiny", device: str = "auto", dtype: torch.dtype | None = None) -> Model:
    """A model ready to decode, with its tokenizer.

    name: "tiny" (in the box), a folder with config.json, *.safetensors and tokenizer files, or a
    hub id. device: "auto" takes a CUDA GPU where there is one. dtype: default float32 on a CPU,
    bfloat16 on a GPU. Raises ValueError with one sentence when something is missing or wrong.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"the model is {name!r}; give 'tiny', a hub id or a folder")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; it must be a floating torch.dtype or None")
    folder = _find(name)
    config = replace(read_config(folder), name=name if name == "tiny" else _short_name(name))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        known = torch.device(device).type in ("cpu", "cuda")
    except (RuntimeError, TypeError):
        known = False
    if not known:
        raise ValueError(f"unknown device {device!r}; use auto, cpu or cuda")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; use --device cpu or auto")
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device("meta"):
        model = Model(config)
    model.load_state_dict(read_weights(folder, config, device, dtype), assign=True)
    model.requires_grad_(False).eval()
    model.tokenizer = read_tokenizer(folder)
    return model


def _short_name(name: str) -> str:
    """A hub id as it is; of a folder its own name."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _find(name: str) -> Path:
    """The folder behind a name; a hub id is fetched (or found in the local cache)."""
    folder = TINY if name == "tiny" else Path(name)
    if folder.is_dir():
        return folder
    if name == "tiny" or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"no model folder at {name!r}; give 'tiny', a hub id such as "
            "GSAI-ML/LLaDA-8B-Instruct, or a folder with config.json and *.safetensors"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"could not fetch {name!r} from the hub: {reason}") from error


def read_config(folder: Path) -> ModelConfig:
    """config.json in its family's keys -> ModelConfig; ValueError names the missing or wrong key.

    Keys that this engine has no use for, such as auto_map, are left alone.
    """
    path = folder / "config.json"
    raw = _read_json(path)
    family = _family(path, raw)
    try:
        for key, value in family.computes.items():
            if _value(raw, key, value) != value:
                raise ValueError(
                    f"{path} has {key} {_short(_value(raw, key, value))}; this engine computes "
                    f"with {value!r} alone"
                )
        read = {"rope_theta": _number, "norm_eps": _number}
        found = {
            field: read.get(field, _whole)(raw, next((k for k in keys if _has(raw, k)), keys[0]))
            for field, keys in family.keys.items()
        }
        return ModelConfig(**found, **family.fields, name=folder.name)
    except KeyError as error:
        raise ValueError(
            f"{path} lacks {error.args[0]!r}; it must have the keys of {family.model_type!r}"
        ) from error
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{path} has a value of the wrong type: {error}") from error


def _family(path: Path, raw: dict) -> Family:
    given = raw.get("model_type")
    for family in FAMILIES.values():
        if family.model_type == given:
            return family
    known = " and ".join(repr(family.model_type) for family in FAMILIES.values())
    raise ValueError(f"{path} has model_type {_short(given)}; this engine loads {known}")


def _short(value) -> str:
    """The value for a message, which stays one line whatever a file says."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _value(raw: dict, key: str, default=...):
    """raw["a"]["b"] of the key "a.b"; the default, or a KeyError of the whole key, without it."""
    value = raw
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            if default is ...:
                raise KeyError(key)
            return default
        value = value[part]
    return value


def _has(raw: dict, key: str) -> bool:
    return _value(raw, key, None) is not None


def _whole(raw: dict, key: str) -> int:
    value = _value(raw, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {_short(value)}, not a whole number")
    return value


def _number(raw: dict, key: str) -> float:
    value = _value(raw, key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{key} is {_short(value)}, not a number")
    return float(value)


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; it must hold an object")
    return value


def read_weights(folder: Path, config: ModelConfig, device, dtype) -> dict[str, Tensor]:
    """Our state dict from the folder's safetensors, sharded or not; shapes are checked."""
    names = parameter_names(config)
    with torch.device("meta"):
        expected = Model(config).state_dict()
    source = _open_shards(folder)
    state = {}
    for ours, theirs in names.items():
        parts = [source(name) for name in theirs]
        tensor = parts[0] if len(parts) == 1 else _join(ours, parts)
        if tensor.shape != expected[ours].shape:
            raise ValueError(
                f"{' + '.join(theirs)} in {folder} has shape {tuple(tensor.shape)}; "
                f"config.json asks for {tuple(expected[ours].shape)}"
            )
        state[ours] = tensor.to(device, dtype)
    return state


def _join(name: str, parts: list[Tensor]) -> Tensor:
    try:
        return torch.cat(parts)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(p.shape)) for p in parts)
        raise ValueError(f"the parts of {name} do not fit together: {shapes}") from error


def parameter_names(config: ModelConfig) -> dict[str, list[str]]:
    """Our parameter name -> the checkpoint's names that make it."""
    names = {}
    for ours, theirs in FAMILIES[config.family].tensors.items():
        if not any("@" in name for name in theirs):
            names[ours] = list(theirs)
            continue
        for i in range(config.layers):
            names[f"blocks.{i}.{ours}"] = [name.replace("@", str(i)) for name in theirs]
    return names


def _open_shards(folder: Path):
    """A function from a tensor's name to the tensor, over one file or the shards of an index."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no weight_map")
    elif (folder / "model.safetensors").is_file():
        weight_map = None
    else:
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        found = f"only {pickled[0]}, which could run code; convert it" if pickled else "none"
        raise ValueError(f"{folder} needs *.safetensors weights; found {found}")
    files = {}

    def read(name: str) -> Tensor:
        shard = "model.safetensors" if weight_map is None else weight_map.get(name)
        if not isinstance(shard, str) or Path(shard).name != shard:
            problem = "does not list" if shard is None else "points outside its folder for"
            raise ValueError(f"{index} {problem} {name}")
        try:
            if shard not in files:
                files[shard] = safe_open(folder / shard, framework="pt")
            return files[shard].get_tensor(name)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} lacks the shard {shard}; fetch it again") from error
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder / shard} cannot give {name}: {reason}") from error

    return read


def read_tokenizer(folder: Path):
    """The folder's fast tokenizer, or None when it has no tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast  # late: the import takes seconds

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {reason}") from error


def save(model: Model, folder: Path, dtype: torch.dtype, shard_bytes: int = 9_000_000) -> None:
    """Write config.json and safetensors in the family's layout, shards of at most `shard_bytes`."""
    from safetensors.torch import save_file

    c = model.config
    folder.mkdir(parents=True, exist_ok=True)
    state, theirs = model.state_dict(), {}
    for ours, names in parameter_names(c).items():
        kv = c.kv_heads * c.head_width
        sizes = {1: [-1], 2: [c.mlp] * 2, 3: [c.width, kv, kv]}[len(names)]
        tensor = state[ours].detach().to("cpu", dtype)
        parts = [tensor] if len(names) == 1 else tensor.split(sizes)
        theirs |= {name: part.contiguous() for name, part in zip(names, parts, strict=True)}
    shards, room = [{}], shard_bytes
    for name, tensor in theirs.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for t in theirs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    family = FAMILIES[c.family]
    config = {"architectures": [family.architecture], "model_type": family.model_type}
    for field, keys in family.keys.items():
        for key in keys:
            config.setdefault(key, getattr(c, field))
    config |= family.computes | {"pad_token_id": c.eos_id, "torch_dtype": str(dtype)[6:]}
    flat = {key: value for key, value in config.items() if "." not in key}
    (folder / "config.json").write_text(json.dumps(flat, indent=1) + "\n")
