"""The known models, where they are fetched from, the memory they need, and `load`."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from d2cache.bundled import ASSETS
from d2cache.families import FAMILIES
from d2cache.layouts import no_config, no_weights
from d2cache.memory import free_memory, in_one_sentence
from d2cache.model import CONFIGS, Model, ModelConfig
from d2cache.quantize import to_fp8
from d2cache.split import spread
from d2cache.weights import (
    FREQUENCY,
    INDEX,
    ONE_FILE,
    Progress,
    check_room,
    files_in,
    read_config,
    read_frequency,
    read_tokenizer,
    read_weights,
    weight_map,
)

TINY = ASSETS / "tiny"

# shape -> hub ids; other checkpoints of these families load as well
HUB = {
    "llada-8b": ["GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"],
    "dream-7b": [
        "Dream-org/Dream-v0-Base-7B",
        "Dream-org/Dream-v0-Instruct-7B",
        "Dream-org/Dream-Coder-v0-Base-7B",
        "Dream-org/Dream-Coder-v0-Instruct-7B",
        "apple/DiffuCoder-7B-Base",
        "apple/DiffuCoder-7B-Instruct",
        "apple/DiffuCoder-7B-cpGRPO",
    ],
}
KNOWN = {"tiny": CONFIGS["tiny"]} | {name: CONFIGS[s] for s, names in HUB.items() for name in names}

# fetched from a hub repository in addition to its weights: no code, no pickles
SMALL_FILES = [
    "config.json",
    INDEX,
    FREQUENCY,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # that layers compute in
CANVAS = 1024  # positions that `Entry.kv` is for


def load(
    name: str | os.PathLike[str] = "tiny",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    weights: str | None = None,
) -> Model:
    """A model ready to decode, with its tokenizer.

    name: "tiny" (bundled), a folder with config.json, *.safetensors and tokenizer files, or a hub
    id. device: "auto" takes a CUDA GPU if there is one; with several, as "cuda:0,cuda:1", each
    holds some of the layers (see `d2cache.split`). dtype: default float32 on a CPU, bfloat16 on a
    GPU. progress: called as progress(what, done, total) with what "fetching" or "reading", and
    bytes; without it a download shows the hub's own bars. weights: "fp8" quantizes the weights of
    the layers' products and of the LM head to 8 bits as they are read. That halves the bytes of
    bfloat16, for an error that `python -m analysis.bench --weights fp8` measures (see
    `d2cache.quantize`).

    Raises ValueError with one sentence when something is missing, wrong or too large.
    """
    if dtype is not None and dtype not in FLOATS:
        known = ", ".join(str(one) for one in FLOATS)
        hint = "; for 8-bit weights, pass weights='fp8'" if "float8" in str(dtype) else ""
        raise ValueError(f"dtype is {dtype!r}; it must be a floating type: {known} or None{hint}")
    if weights not in (None, "fp8"):
        raise ValueError(f"weights is {weights!r}; it must be 'fp8' or None")
    name, devices = check_name(name), pick_devices(device)
    dtype = dtype or default_dtype(devices[0])
    folder = find(name, progress)
    config, tokenizer = described(folder, label(name))
    model, homes = spread_over(config, devices)
    narrowed = to_fp8(model) if weights == "fp8" else ()
    with in_one_sentence(f"{config.name} does not fit", "free some, or choose a smaller model"):
        state = read_weights(folder, config, homes, dtype, progress, narrowed)
        model.load_state_dict(state, assign=True)
        model.requires_grad_(False).eval().lay_out()
    model.tokenizer, model.frequency = tokenizer, read_frequency(folder, config)
    return model


def described(folder: Path, name: str) -> tuple[ModelConfig, Any]:
    """The shape of the model in a folder, under a name, and its tokenizer or None; ValueError for
    what cannot be loaded. No weights are read."""
    config = replace(read_config(folder), name=name)
    tokenizer = read_tokenizer(folder, config)
    return replace(config, eos_id=_end_id(config, tokenizer)), tokenizer


def pick_device(device: str = "auto") -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises ValueError for a device that is unknown or not available here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError):
        picked = None
    if picked is None or picked.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; use auto, cpu or cuda")
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; use --device cpu or auto")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(f"device is {picked}; the GPUs here are cuda:0 to cuda:{last}")
    return picked


def pick_devices(devices: str = "auto") -> list[torch.device]:
    """The torch devices of a list such as "cuda:0,cuda:1"; raises ValueError as `pick_device`."""
    return [pick_device(name.strip()) for name in str(devices).split(",")]


def spread_over(
    config: ModelConfig, devices: list[torch.device]
) -> tuple[Model, dict[str, torch.device]]:
    """A model on the meta device, and the device of each parameter: in proportion to free memory,
    or evenly if that is not known for all devices."""
    free = [free_memory(device) or 0 for device in devices]
    model, places = spread(config, free if all(free) else [1] * len(devices))
    return model, {name: devices[place] for name, place in places.items()}


def check_fits(config: ModelConfig, devices: list[torch.device], dtype: torch.dtype) -> None:
    """Raise a ValueError of one sentence if weights of this dtype do not fit on the devices."""
    _, homes = spread_over(config, devices)
    check_room(config, homes, dtype)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; float32 on a CPU, where 16-bit types are slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _end_id(config: ModelConfig, tokenizer: Any) -> int:
    """The token that ends an answer and fills the rest of it."""
    padding = FAMILIES[config.family].padding
    known = {} if tokenizer is None or padding is None else tokenizer.get_added_vocab()
    return known.get(padding, config.eos_id)


@dataclass(frozen=True)
class Entry:
    """A known model and the memory it needs on a device; sizes in bytes."""

    name: str
    family: str
    parameters: int
    cached: bool  # whether all of it is on this disk
    device: str
    dtype: str  # the default on that device
    weights: int
    kv: int  # keys and values of a canvas of 1024 positions, batch 1
    free: int | None  # on the device; None if the system does not report it

    @property
    def fits(self) -> bool | None:
        """Whether weights, keys and values fit into the free memory; None if that is unknown."""
        return None if self.free is None else self.weights + self.kv <= self.free

    def summary(self) -> dict[str, Any]:
        """The entry as plain values, sizes in GB."""
        return {
            "name": self.name,
            "family": self.family,
            "parameters": self.parameters,
            "cached": self.cached,
            "device": self.device,
            "dtype": self.dtype,
            "weights_gb": self.weights / 1e9,
            "kv_gb": self.kv / 1e9,
            "memory_gb": (self.weights + self.kv) / 1e9,
            "free_gb": None if self.free is None else self.free / 1e9,
            "fits": self.fits,
        }


def known(device: str = "auto") -> list[Entry]:
    """An entry for every known model; raises ValueError for a device that is not available."""
    place = pick_device(device)
    dtype, free = default_dtype(place), free_memory(place)
    counts = {config: parameters(config) for config in set(KNOWN.values())}
    return [
        Entry(
            name=name,
            family=config.family,
            parameters=counts[config],
            cached=cached(name) is not None,
            device=place.type,
            dtype=str(dtype)[6:],
            weights=counts[config] * dtype.itemsize,
            kv=2 * config.layers * config.kv_heads * config.head_width * CANVAS * dtype.itemsize,
            free=free,
        )
        for name, config in KNOWN.items()
    ]


def parameters(config: ModelConfig) -> int:
    """The number of parameters of a model of this shape."""
    with torch.device("meta"):
        return sum(p.numel() for p in Model(config).parameters())


def label(name: str | os.PathLike[str]) -> str:
    """What to call a model: its hub id, or the name of its folder.

    Raises ValueError for a name that cannot be a model and for a folder with a bad config.json;
    nothing is fetched, and no weights are read.
    """
    name = check_name(name)
    if name == "tiny" or not os.path.isdir(name):
        return name
    read_config(Path(name))
    return Path(name).resolve().name


def size(name: str | os.PathLike[str]) -> int | None:
    """The number of parameters of a model, or None if it is neither known nor a folder."""
    name = os.fspath(name)
    if name not in KNOWN and not os.path.isdir(name):
        return None
    return parameters(KNOWN[name] if name in KNOWN else read_config(Path(name)))


def check_name(name: str | os.PathLike[str]) -> str:
    """The name as text, if it could be a model: "tiny", a folder, or what looks like a hub id.

    Raises ValueError otherwise.
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"the model is {name!r}; give 'tiny', a hub id or a folder")
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, re.ASCII)
    if name != "tiny" and not os.path.isdir(name) and not hub_id:
        raise ValueError(
            f"no model folder at {name!r}; give 'tiny', a hub id such as "
            "GSAI-ML/LLaDA-8B-Instruct, or a folder with config.json and *.safetensors"
        )
    return name


def find(name: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The folder of a model; a hub repository is fetched first, unless all of it is on this disk.

    Small files are fetched first, so that a repository that cannot be loaded is refused before its
    weights are fetched. progress: as for `load`. Raises ValueError for a name that cannot be a
    model, for a repository that cannot be loaded, and when fetching fails.
    """
    name = check_name(name)
    folder = TINY if name == "tiny" else Path(name)
    here = folder if os.path.isdir(folder) else cached(name)
    return _fetch_all(name, progress) if here is None else here


def _fetch_all(name: str, progress: Progress | None) -> Path:
    folder = _fetch(name, SMALL_FILES, tqdm_class=_reporter(None))
    if not (folder / "config.json").is_file():
        raise no_config(name, _hub_files(name, folder))
    read_config(folder)
    shards = [ONE_FILE]
    if (folder / INDEX).is_file():
        shards = sorted(set(weight_map(folder).values()))
    elif ONE_FILE not in (files := _hub_files(name, folder)):
        raise no_weights(name, files)
    bars = {} if progress is None else {"tqdm_class": _reporter(progress)}
    return _fetch(name, shards, revision=folder.name, **bars)


def cached(name: str) -> Path | None:
    """The folder of a model if all of it is on this disk, else None; fetches nothing."""
    try:
        folder = TINY if name == "tiny" else Path(name)
        if not os.path.isdir(folder):
            folder = _fetch(name, SMALL_FILES, local_files_only=True)
        read_config(folder)
        shards = set(weight_map(folder).values()) if (folder / INDEX).is_file() else {ONE_FILE}
    except ValueError:
        return None
    return folder if all((folder / shard).is_file() for shard in shards) else None


def _fetch(name: str, files: list[str], **settings: Any) -> Path:
    """Fetch these files of a hub repository, those that it has; returns their folder.

    settings: for `snapshot_download`. Raises ValueError with the reason when that fails.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=files, **settings))
    except Exception as error:  # network libraries raise all kinds of exceptions
        raise ValueError(
            f"could not fetch {name!r} from the hub: {_why_not_fetched(error)}; check the name and "
            "the network, or give a folder"
        ) from error


def _why_not_fetched(error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):  # a RepositoryNotFoundError too
        return "its owner asks you to accept terms first, on its page"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached, and not all of the model is in the local cache"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _hub_files(name: str, folder: Path) -> list[str]:
    """Names of a hub repository's files; without a network, of those that were fetched before."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(name, revision=folder.name)
    except Exception:  # as in `_fetch`; a missing file is reported when it is read
        return files_in(folder)


def _reporter(progress: Progress | None) -> type:
    """A tqdm class that draws nothing and reports the bytes of a download to `progress`."""
    from tqdm.auto import tqdm

    class Reporter(tqdm):
        def __init__(self, *args, **kwargs):
            self.in_bytes = kwargs.get("unit") == "B"  # the hub also counts files
            super().__init__(*args, **kwargs | {"file": io.StringIO()})

        def display(self, *args, **kwargs):
            if progress is not None and self.in_bytes and self.total:
                progress("fetching", int(min(self.n, self.total)), int(self.total))

    return Reporter
