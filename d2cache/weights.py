"""Checkpoints: a folder in the hub's layout -> Model. Executes nothing that a folder brings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from d2cache.families import FAMILIES, Family
from d2cache.model import Model, ModelConfig
from d2cache.ops import quantize_rows

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
FREQUENCY = "frequency.safetensors"  # how often each token occurs in a corpus

NUMBERS = ("F64", "F32", "F16", "BF16")  # types of stored weights; others are packed or scaled

# progress(what, done, total): what is "fetching" or "reading", done and total are bytes
Progress = Callable[[str, int, int], None]


def free_memory(device: torch.device) -> int | None:
    """Bytes that a model could take on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    room = _numbers(Path("/proc/meminfo")).get("MemAvailable")
    if room is None:
        return None
    rooms = [room * 1024]
    for folder, limit, used, cache in (  # a container's own limit, versions 2 and 1
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        here = [_numbers(Path(folder, name)) for name in (limit, used, "memory.stat")]
        if all(here):
            rooms.append(here[0][""] - here[1][""] + here[2].get(cache, 0))
    return max(0, min(rooms))


def _numbers(path: Path) -> dict[str, int]:
    """Lines "name: 12 kB", "name 12" or "12" of a system's file; nothing where there is none."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return {}
    found = re.findall(r"^(?:([\w()]+):?\s+)?(\d+)(?: kB)?$", text, re.MULTILINE)
    return {name: int(number) for name, number in found}


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
                    f"{path} has {key} {short(_value(raw, key, value))}; this engine computes "
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
    raise ValueError(f"{path} has model_type {short(given)}; this engine loads {known}")


def short(value) -> str:
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
        raise TypeError(f"{key} is {short(value)}, not a whole number")
    return value


def _number(raw: dict, key: str) -> float:
    value = _value(raw, key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{key} is {short(value)}, not a number")
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


def read_weights(
    folder: Path,
    config: ModelConfig,
    homes: dict[str, torch.device],
    dtype: torch.dtype,
    progress: Progress | None = None,
    narrow: Collection[str] = (),
) -> dict[str, Tensor]:
    """Our state dict from the folder's safetensors, sharded or not.

    homes: the device of each parameter, by our names. narrow: those that are kept in 8 bits, a
    `.scale` beside each `.weight` (see `d2cache.quantize`). Room there, names, shapes and types are
    checked before a weight is read; then each goes to its device by itself and is brought to 8 bits
    there, so that the host never holds the model beside its copy, nor a device more than one
    weight beside what it keeps.
    """
    names = parameter_names(config)
    with torch.device("meta"):
        expected = {ours: tensor.shape for ours, tensor in Model(config).state_dict().items()}
    totals = dict.fromkeys(homes.values(), 0)
    for ours, shape in expected.items():
        each = shape.numel() * (1 if ours in narrow else dtype.itemsize)
        totals[homes[ours]] += each + 4 * shape[0] * (ours in narrow)
    free, done = {device: free_memory(device) for device in totals}, 0
    for device, total in totals.items():
        if free[device] is not None and total > free[device]:
            raise _too_large(config.name, total, free[device], device)
    source = _open_shards(folder)
    for ours, theirs in names.items():
        for name, rows in zip(theirs, _rows(config, expected[ours], len(theirs)), strict=True):
            _check(folder, name, source(name), (rows, *expected[ours][1:]))
    state = {}
    for ours, theirs in names.items():
        try:
            device = homes[ours]
            whole = torch.empty(expected[ours], dtype=dtype, device=device)
        except RuntimeError as error:  # out of memory has this type on a CPU
            raise _too_large(config.name, totals[device], free[device], device) from error
        parts = whole.split(_rows(config, whole.shape, len(theirs)))
        for name, part in zip(theirs, parts, strict=True):
            part.copy_(source(name).get_tensor(name))
        kept = {ours: whole}
        if ours in narrow:
            kept = dict(zip((ours, scale_of(ours)), quantize_rows(whole), strict=True))
        state |= kept
        done += sum(tensor.nbytes for tensor in kept.values())
        if progress is not None:
            progress("reading", done, sum(totals.values()))
    return state


def scale_of(weight: str) -> str:
    """The name of the scales of a weight in 8 bits."""
    return weight.removesuffix("weight") + "scale"


def _rows(config: ModelConfig, shape: torch.Size, parts: int) -> list[int]:
    """Rows of each part of a joined parameter: one; gate and up; or q, k and v."""
    kv = config.kv_heads * config.head_width
    return {1: [shape[0]], 2: [config.mlp] * 2, 3: [config.width, kv, kv]}[parts]


def _check(folder: Path, name: str, file, wanted: tuple[int, ...]) -> None:
    """Refuse a stored tensor of another shape or of a type that is not plain numbers."""
    stored = file.get_slice(name)
    if tuple(stored.get_shape()) != wanted:
        raise ValueError(
            f"{name} in {folder} has shape {short(tuple(stored.get_shape()))}; "
            f"config.json asks for {wanted}"
        )
    if stored.get_dtype() not in NUMBERS:
        raise ValueError(
            f"{name} in {folder} has type {stored.get_dtype()}; this engine reads "
            f"{', '.join(NUMBERS)}: take a checkpoint that is not quantized"
        )


def _too_large(name: str, needed: int, free: int | None, device: torch.device) -> ValueError:
    there = "too little" if free is None else f"{free / 1e9:.1f} GB"
    return ValueError(
        f"{name} needs {needed / 1e9:.1f} GB for its weights, and {device} has {there} free; "
        "free some, or take a smaller model"
    )


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


def weight_map(folder: Path) -> dict[str, str]:
    """The index: tensor's name -> its shard, a file of the folder itself."""
    index = folder / INDEX
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise ValueError(f"{index} has no weight_map")
    for name, shard in listed.items():
        # the shards' names are also patterns of a download
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise ValueError(
                f"{index} points outside its folder for {short(name)[1:-1]}: {short(shard)}; "
                "it must name a *.safetensors file beside it"
            )
    return listed


def _open_shards(folder: Path):
    """A function from a tensor's name to the open file that holds it, one file or shards."""
    listed = weight_map(folder) if (folder / INDEX).is_file() else None
    if listed is None and not (folder / ONE_FILE).is_file():
        raise no_weights(folder, [path.name for path in folder.iterdir()])
    files, stored = {}, {}

    def source(name: str):
        if listed is not None and name not in listed:
            raise ValueError(f"{folder / INDEX} does not list {name}; fetch it again")
        shard = ONE_FILE if listed is None else listed[name]
        if shard not in files:
            files[shard] = _open(folder, shard)
            stored[shard] = set(files[shard].keys())
        if name not in stored[shard]:
            raise ValueError(f"{folder / shard} cannot give {name}; fetch it again")
        return files[shard]

    return source


def _open(folder: Path, shard: str):
    # a hub cache keeps its files as links into the folder of the repository
    root = folder.resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    if not (folder / shard).resolve().is_relative_to(root):
        raise ValueError(f"{folder / shard} is a link out of its folder; put the file itself there")
    try:
        return safe_open(folder / shard, framework="pt")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} lacks the shard {shard}; fetch it again") from error
    except (SafetensorError, OSError, RuntimeError) as error:  # the last where it cannot be mapped
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / shard} is not readable: {reason}; fetch it again") from error


def no_weights(where, files: list[str]) -> ValueError:
    pickled = sorted(f for f in files if re.search(r"\.(bin|pt|pth|ckpt|pkl)$", f))
    found = f"only {pickled[0]}, which could run code; convert it" if pickled else "none"
    return ValueError(f"{where} needs *.safetensors weights; found {found}")


def read_tokenizer(folder: Path, config: ModelConfig):
    """The folder's tokenizer, or None when it has no files of one.

    Read by classes of transformers, never by the code that a checkpoint brings; ValueError when
    the files are broken or do not belong to the model.
    """
    choices = FAMILIES[config.family].tokenizers
    files = next((f for f in choices if (folder / f[0]).is_file()), None)
    if files is None:
        return None
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has {files[0]} but lacks {file}; fetch it again")
    import transformers  # late: the import takes seconds

    try:
        tokenizer = getattr(transformers, choices[files]).from_pretrained(folder)
        ids = tokenizer.get_vocab().values()
        largest, mask = max(ids, default=0), tokenizer.mask_token_id
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder / files[0]} cannot be read: {reason}; fetch it again") from error
    if largest >= config.vocab or mask not in (None, config.mask_id):
        raise ValueError(
            f"the tokenizer in {folder} has ids up to {largest} and mask {mask}; the model has "
            f"ids up to {config.vocab - 1} and mask {config.mask_id}: take the model's own"
        )
    return tokenizer


def read_frequency(folder: Path, config: ModelConfig) -> Tensor | None:
    """Share of each token id in a corpus, (V,) float32, or None when the folder has no such file;
    ValueError when it is none."""
    if not (folder / FREQUENCY).is_file():
        return None
    try:
        share = _open(folder, FREQUENCY).get_tensor("frequency")
    except SafetensorError as error:
        raise ValueError(f"{folder / FREQUENCY} lacks the tensor 'frequency'") from error
    if share.shape != (config.vocab,) or not share.is_floating_point() or not (share >= 0).all():
        raise ValueError(
            f"{folder / FREQUENCY} has shape {tuple(share.shape)} and type {share.dtype}; it must "
            f"be ({config.vocab},) numbers of 0 or more"
        )
    return share.float()


def save(model: Model, folder: Path, dtype: torch.dtype, shard_bytes: int = 9_000_000) -> None:
    """Write config.json and safetensors in the family's layout, shards of at most `shard_bytes`.

    ValueError for a model whose weights are in 8 bits, which the layout has no place for.
    """
    from safetensors.torch import save_file

    if model.weights is not None:
        raise ValueError(
            f"the weights of {model.config.name} are {model.weights}; load it without them to save"
        )
    c = model.config
    folder.mkdir(parents=True, exist_ok=True)
    state, theirs = model.state_dict(), {}
    for ours, names in parameter_names(c).items():
        tensor = state[ours].detach().to("cpu", dtype)
        parts = tensor.split(_rows(c, tensor.shape, len(names)))
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
