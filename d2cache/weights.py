"""Checkpoint folders in the hub's layout: read and written. Nothing in a folder is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from d2cache import layouts
from d2cache.families import FAMILIES, FOREIGN, Family
from d2cache.layouts import FREQUENCY, INDEX, ONE_FILE
from d2cache.memory import OutOfMemory, free_memory
from d2cache.model import Model, ModelConfig
from d2cache.ops import quantize_rows

PLAIN_TYPES = ("F64", "F32", "F16", "BF16")  # of stored weights; others are packed or scaled

# progress(what, done, total): what is "fetching" or "reading"; done and total are bytes
Progress = Callable[[str, int, int], None]


def read_config(folder: Path) -> ModelConfig:
    """config.json, in the keys of its family -> ModelConfig.

    Keys that no layer depends on, such as auto_map, are ignored. Raises ValueError that names the
    missing or wrong key, or what the checkpoint is if it is not one of these models.
    """
    path = folder / "config.json"
    if folder.is_dir() and not path.is_file():
        raise layouts.no_config(folder, files_in(folder))
    raw = _read_json(path)
    family = _family(path, raw)
    raw = family.complete(raw)
    _check_mathematics(path, raw, family)
    try:
        readers = {"rope_theta": _number, "norm_eps": _number, "eos_id": _first_id}
        found: dict[str, Any] = {
            field: readers.get(field, _whole)(raw, _first_given(raw, keys))
            for field, keys in family.keys.items()
        }
    except KeyError as error:
        raise ValueError(
            f"{path} lacks {error.args[0]!r}; it must have the keys of {family.model_type!r}"
        ) from error
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{path} has a value of the wrong type: {error}") from error
    try:
        config = ModelConfig(**found, **family.fields, name=folder.name)
    except ValueError as error:
        raise ValueError(f"{path} cannot be right: {error}") from error
    if raw.get("head_dim") not in (None, config.head_width):
        raise ValueError(
            f"{path} has head_dim {short(raw['head_dim'])}; this engine supports only width / "
            f"heads, {config.head_width}"
        )
    return config


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _family(path: Path, raw: dict[str, Any]) -> Family:
    given = raw.get("model_type")
    for family in FAMILIES.values():
        if family.model_type == given:
            return family
    known = " and ".join(repr(family.model_type) for family in FAMILIES.values())
    raise ValueError(f"{path} has model_type {short(given)}; this engine loads {known}")


def _check_mathematics(path: Path, raw: dict[str, Any], family: Family) -> None:
    """Refuse a checkpoint whose layers compute anything other than `Block` does."""
    method = layouts.quantization_of(raw)
    if method is not None:
        raise ValueError(
            f"{path} says that the weights are quantized ({method}); use a checkpoint that is not "
            "quantized"
        )
    for key, supported in (FOREIGN | family.computes).items():
        given = _lookup(raw, key, supported)
        if not _computes_the_same(given, supported, key in FOREIGN):
            raise ValueError(
                f"{path} has {key} {short(given)}; this engine supports only {supported!r}"
            )
    kinds = raw.get("layer_types")
    if isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds):
        raise ValueError(
            f"{path} has layer_types {short(kinds)}; this engine supports only 'full_attention'"
        )


def _computes_the_same(given: Any, supported: Any, foreign: bool) -> bool:
    if given is None:  # the classes read null as "off"
        return foreign or supported is None or supported is False
    if supported is None and isinstance(given, dict):  # rope_scaling
        return given.get("rope_type", given.get("type")) == "default"
    return given == supported


def short(value: object) -> str:
    """repr(value) cut to 60 characters, so that a message stays short whatever a file holds."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _first_given(raw: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The first of these keys that has a value, else the first of them."""
    return next((key for key in keys if _lookup(raw, key, None) is not None), keys[0])


def _lookup(raw: dict[str, Any], key: str, default: Any = ...) -> Any:
    """raw["a"]["b"] for the key "a.b"; if it is missing, the default, or KeyError without one."""
    value: Any = raw
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            if default is ...:
                raise KeyError(key)
            return default
        value = value[part]
    return value


def _whole(raw: dict[str, Any], key: str) -> int:
    value = _lookup(raw, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {short(value)}, not a whole number")
    return value


def _first_id(raw: dict[str, Any], key: str) -> int:
    """A token id, or the first of a list of them: that one also fills what follows the end."""
    value = _lookup(raw, key)
    return _whole({key: value[0]} if isinstance(value, list) and value else raw, key)


def _number(raw: dict[str, Any], key: str) -> float:
    value = _lookup(raw, key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{key} is {short(value)}, not a number")
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
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
    homes: Mapping[str, torch.device],
    dtype: torch.dtype,
    progress: Progress | None = None,
    narrow: Collection[str] = (),
) -> dict[str, Tensor]:
    """The state dict of our `Model`, from the folder's safetensors, sharded or not.

    homes: the device of each parameter, by our names. narrow: parameters to keep in 8 bits, with a
    `.scale` beside each `.weight` (see `d2cache.quantize`).

    Free memory, names, shapes and types are checked before any weight is read. Then each weight
    goes to its device by itself and is quantized there, so that the host never holds the model and
    a copy of it, nor a device more than one weight in addition to what it keeps.

    Raises ValueError if a file or tensor is missing, unreadable or wrong, or the memory too small.
    """
    shapes = _shapes(config)
    needed = _needed_bytes(shapes, homes, dtype, narrow)
    free = _check_free(config, needed)
    source = Shards(folder)
    names = parameter_names(config)
    source.check_names(config, names)
    _check_tensors(folder, config, names, shapes, source)
    state: dict[str, Tensor] = {}
    done, total = 0, sum(needed.values())
    for ours, theirs in names.items():
        try:
            whole = torch.empty(shapes[ours], dtype=dtype, device=homes[ours])
        except RuntimeError as error:  # out of memory has this type on a CPU
            device = homes[ours]
            raise _too_large(config, needed[device], free[device], device) from error
        parts = whole.split(_part_rows(config, whole.shape, len(theirs)))
        for name, part in zip(theirs, parts, strict=True):
            part.copy_(source.file_of(name).get_tensor(name))
        kept = {ours: whole}
        if ours in narrow:
            kept = dict(zip((ours, scale_of(ours)), quantize_rows(whole), strict=True))
        state |= kept
        done += sum(tensor.nbytes for tensor in kept.values())
        if progress is not None:
            progress("reading", done, total)
    return state


def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Our parameter name -> its shape."""
    with torch.device("meta"):
        return {ours: tensor.shape for ours, tensor in Model(config).state_dict().items()}


def _needed_bytes(
    shapes: Mapping[str, torch.Size],
    homes: Mapping[str, torch.device],
    dtype: torch.dtype,
    narrow: Collection[str],
) -> dict[torch.device, int]:
    """Bytes of the weights on each device; a narrow one has a float32 scale for each row."""
    needed = dict.fromkeys(homes.values(), 0)
    for ours, shape in shapes.items():
        if ours in narrow:
            needed[homes[ours]] += shape.numel() + 4 * shape[0]
        else:
            needed[homes[ours]] += shape.numel() * dtype.itemsize
    return needed


def check_room(
    config: ModelConfig,
    homes: Mapping[str, torch.device],
    dtype: torch.dtype,
    narrow: Collection[str] = (),
) -> None:
    """Raise OutOfMemory, a ValueError, if a device has too little free memory for its weights.

    homes, narrow: as for `read_weights`.
    """
    _check_free(config, _needed_bytes(_shapes(config), homes, dtype, narrow))


def _check_free(
    config: ModelConfig, needed: Mapping[torch.device, int]
) -> dict[torch.device, int | None]:
    """Free bytes of each device; raises OutOfMemory if they are fewer than it needs."""
    free = {device: free_memory(device) for device in needed}
    for device, size in needed.items():
        available = free[device]
        if available is not None and size > available:
            raise _too_large(config, size, available, device)
    return free


def _check_tensors(
    folder: Path,
    config: ModelConfig,
    names: Mapping[str, list[str]],
    shapes: Mapping[str, torch.Size],
    source: Shards,
) -> None:
    """Shape and type of every tensor of the checkpoint."""
    for ours, theirs in names.items():
        rows = _part_rows(config, shapes[ours], len(theirs))
        for name, count in zip(theirs, rows, strict=True):
            _check_tensor(folder, name, source.file_of(name), (count, *shapes[ours][1:]))


def scale_of(weight: str) -> str:
    """The name of the scales that belong to a weight in 8 bits."""
    return weight.removesuffix("weight") + "scale"


def _part_rows(config: ModelConfig, shape: torch.Size, parts: int) -> list[int]:
    """Rows of each part of a joined parameter: itself alone; gate and up; or q, k and v."""
    kv = config.kv_heads * config.head_width
    return {1: [shape[0]], 2: [config.mlp] * 2, 3: [config.width, kv, kv]}[parts]


def _check_tensor(folder: Path, name: str, file: Any, wanted: tuple[int, ...]) -> None:
    """Refuse a stored tensor of another shape, or of a type that is not plain numbers."""
    stored = file.get_slice(name)
    if tuple(stored.get_shape()) != wanted:
        raise ValueError(
            f"{name} in {folder} has shape {short(tuple(stored.get_shape()))}; "
            f"config.json asks for {wanted}"
        )
    if stored.get_dtype() not in PLAIN_TYPES:
        raise ValueError(
            f"{name} in {folder} has type {stored.get_dtype()}; this engine reads "
            f"{', '.join(PLAIN_TYPES)}: use a checkpoint that is not quantized"
        )


def _too_large(
    config: ModelConfig, needed: int, free: int | None, device: torch.device
) -> OutOfMemory:
    available = "too little" if free is None else f"{free / 1e9:.1f} GB"
    return OutOfMemory(
        f"{config.name} needs {needed / 1e9:.1f} GB for its weights, and {device} has {available} "
        "free; free some memory, or choose a smaller model"
    )


def parameter_names(config: ModelConfig) -> dict[str, list[str]]:
    """Our parameter name -> the names of the checkpoint's tensors that are joined in it."""
    names: dict[str, list[str]] = {}
    for ours, theirs in FAMILIES[config.family].tensors.items():
        if not any("@" in name for name in theirs):
            names[ours] = list(theirs)
            continue
        for i in range(config.layers):
            names[f"blocks.{i}.{ours}"] = [name.replace("@", str(i)) for name in theirs]
    return names


def weight_map(folder: Path) -> dict[str, str]:
    """The index of a sharded checkpoint: tensor name -> file name of its shard.

    Raises ValueError for an index that is broken or names files outside the folder.
    """
    index = folder / INDEX
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise ValueError(f"{index} has no weight_map")
    for name, shard in listed.items():
        # shard names are also used as patterns of what to download
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise ValueError(
                f"{index} points outside its folder for {short(name)[1:-1]}: {short(shard)}; "
                "it must name a *.safetensors file beside it"
            )
    return listed


class Shards:
    """The open safetensors files of a checkpoint, and which of them holds each tensor."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.listed = weight_map(folder) if (folder / INDEX).is_file() else None
        if self.listed is None and not (folder / ONE_FILE).is_file():
            raise layouts.no_weights(folder, files_in(folder))
        shards = [ONE_FILE] if self.listed is None else sorted(set(self.listed.values()))
        self.files = {shard: _open(folder, shard) for shard in shards}
        self.stored = {shard: set(file.keys()) for shard, file in self.files.items()}

    def file_of(self, name: str) -> Any:
        """The open file that holds this tensor; it must be there, see `check_names`."""
        return self.files[self._shard_of(name)]

    def check_names(self, config: ModelConfig, names: Mapping[str, list[str]]) -> None:
        """ValueError unless the files hold the tensors of the model, each once, and no others.

        names: `parameter_names` of the model.
        """
        family = FAMILIES[config.family]
        found = set[str]().union(*self.stored.values())
        wanted = [name for theirs in names.values() for name in theirs]
        lacking = [name for name in wanted if name not in found]
        if lacking:
            looks = layouts.missing(family, found, lacking, config.layers)
            raise ValueError(f"{self.folder} {looks}" if looks else self._lacks(lacking[0]))
        for name in wanted:
            if self._shard_of(name) not in self.stored or not self._holds(name):
                raise ValueError(self._lacks(name))
        looks = layouts.unused(family, found.difference(wanted), config.layers)
        if looks:
            raise ValueError(f"{self.folder} {looks}")

    def _shard_of(self, name: str) -> str:
        return ONE_FILE if self.listed is None else self.listed.get(name, "")

    def _holds(self, name: str) -> bool:
        return name in self.stored[self._shard_of(name)]

    def _lacks(self, name: str) -> str:
        shard = self._shard_of(name)
        if not shard:
            return f"{self.folder / INDEX} does not list {name}; fetch it again"
        return f"{self.folder / shard} does not contain {name}; fetch it again"


def _open(folder: Path, file: str) -> Any:
    """A safetensors file of the folder, opened; never one that a link puts elsewhere."""
    # a hub cache keeps its files as links into the folder of the repository
    root = folder.resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    path = folder / file
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{path} is a link out of its folder; put the file itself there")
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} lacks the shard {file}; fetch it again") from error
    except (SafetensorError, OSError, RuntimeError) as error:  # the last if it cannot be mapped
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not readable: {reason}; fetch it again") from error


def read_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """The folder's tokenizer, or None if it has no tokenizer files.

    Read by classes of transformers, never by code that comes with a checkpoint. Raises ValueError
    if the files are broken or do not belong to the model.
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
            f"ids up to {config.vocab - 1} and mask {config.mask_id}: use the model's own"
        )
    return tokenizer


def read_frequency(folder: Path, config: ModelConfig) -> Tensor | None:
    """Share of each token id in a corpus, (V,) float32, or None if the folder has no such file.

    Raises ValueError if the file is not what it should be.
    """
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
    """Write config.json and safetensors in the layout of the model's family.

    dtype: of the written weights. shard_bytes: the largest shard, unless one tensor is larger.
    Raises ValueError for a model whose weights are in 8 bits, which the layout does not allow for.
    """
    if model.weights is not None:
        raise ValueError(
            f"the weights of {model.config.name} are {model.weights}; load it without them to save"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, _checkpoint_tensors(model, dtype), shard_bytes)
    _write_json(folder / "config.json", _config_json(model.config, dtype))


def _checkpoint_tensors(model: Model, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights on the host, under the names of the model's family."""
    config, state = model.config, model.state_dict()
    tensors: dict[str, Tensor] = {}
    for ours, theirs in parameter_names(config).items():
        whole = state[ours].detach().to("cpu", dtype)
        parts = whole.split(_part_rows(config, whole.shape, len(theirs)))
        tensors |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
    return tensors


def _write_shards(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """The shards, filled in order, and their index."""
    from safetensors.torch import save_file

    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    listed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        listed |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


def _config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    family = FAMILIES[config.family]
    content: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
    }
    for field, keys in family.keys.items():
        for key in keys:
            content.setdefault(key, getattr(config, field))
    content |= family.computes
    content |= {"pad_token_id": config.eos_id, "torch_dtype": str(dtype)[6:]}
    return {key: value for key, value in content.items() if "." not in key}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
