"""Which models there are, where they come from, what they need, and `load`."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from d2cache.families import FAMILIES
from d2cache.model import CONFIGS, Model, ModelConfig
from d2cache.quantize import to_fp8
from d2cache.split import spread
from d2cache.weights import (
    FREQUENCY,
    INDEX,
    ONE_FILE,
    Progress,
    free_memory,
    no_weights,
    read_config,
    read_frequency,
    read_tokenizer,
    read_weights,
    weight_map,
)

TINY = Path(__file__).resolve().parent.parent / "assets" / "tiny"

# hub ids by shape; other checkpoints of these families load as well
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

# all that is fetched of a hub repository beside its weights: no code, no pickles
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

CANVAS = 1024  # positions that the listed memory for K,V is for


def load(
    name: str = "tiny",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    weights: str | None = None,
) -> Model:
    """A model ready to decode, with its tokenizer.

    name: "tiny" (in the box), a folder with config.json, *.safetensors and tokenizer files, or a
    hub id. device: "auto" takes a CUDA GPU where there is one; of several, as "cuda:0,cuda:1", each
    holds a part of the layers (see `d2cache.split`). dtype: default float32 on a CPU, bfloat16 on
    a GPU. progress: called as progress(what, done, total) with what "fetching" or
    "reading", and bytes; without it the hub's own bars show a download. weights: "fp8" brings those
    of the layers' products and of the LM head to 8 bits as they are read, half of bfloat16's bytes
    for an error that `d2cache.quantize` and `python -m analysis.bench --weights fp8` state.

    Raises ValueError with one sentence when something is missing, wrong or too large.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; it must be a floating torch.dtype or None")
    if weights not in (None, "fp8"):
        raise ValueError(f"weights is {weights!r}; it must be 'fp8' or None")
    devices = pick_devices(device)
    dtype = dtype or default_dtype(devices[0])
    folder = find(name, progress)
    config = replace(read_config(folder), name=label(name))
    tokenizer = read_tokenizer(folder, config)
    config = replace(config, eos_id=_end_id(config, tokenizer))
    model, homes = spread_over(config, devices)
    short = to_fp8(model) if weights == "fp8" else ()
    state = read_weights(folder, config, homes, dtype, progress, short)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval().lay_out()
    model.tokenizer, model.frequency = tokenizer, read_frequency(folder, config)
    return model


def pick_device(device: str = "auto") -> torch.device:
    """The torch device of "auto", "cpu" or "cuda"; ValueError when it is unknown or not there."""
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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(f"device is {device}; the GPUs here are cuda:0 to cuda:{last}")
    return device


def pick_devices(devices: str = "auto") -> list[torch.device]:
    """The torch devices of a list such as "cuda:0,cuda:1"; ValueError as for `pick_device`."""
    return [pick_device(one.strip()) for one in str(devices).split(",")]


def spread_over(
    config: ModelConfig, devices: list[torch.device]
) -> tuple[Model, dict[str, torch.device]]:
    """A model on the meta device, and the device of each parameter: each holds as it has room."""
    free = [free_memory(device) for device in devices]
    model, places = spread(config, free if all(free) else [1] * len(devices))
    return model, {name: devices[place] for name, place in places.items()}


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; float32 on a CPU, which is slow at the narrower types."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _end_id(config: ModelConfig, tokenizer) -> int:
    """The token that ends an answer and fills what is left of it."""
    padding = FAMILIES[config.family].padding
    known = {} if tokenizer is None or padding is None else tokenizer.get_added_vocab()
    return known.get(padding, config.eos_id)


@dataclass(frozen=True)
class Entry:
    """A known model and what it needs on a device; sizes in bytes."""

    name: str
    family: str
    parameters: int
    cached: bool  # all of it is on this disk
    device: str
    dtype: str  # what it would load with there
    weights: int
    kv: int  # keys and values of a canvas of 1024 positions, batch 1
    free: int | None  # on the device; None where the system does not say

    @property
    def fits(self) -> bool | None:
        return None if self.free is None else self.weights + self.kv <= self.free

    def summary(self) -> dict:
        """As plain values, sizes in GB."""
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
    """Every known model, on that device; ValueError for a device that is not there."""
    on = pick_device(device)
    dtype, free = default_dtype(on), free_memory(on)
    counts = {config: parameters(config) for config in set(KNOWN.values())}
    return [
        Entry(
            name,
            c.family,
            counts[c],
            cached(name) is not None,
            on.type,
            str(dtype)[6:],
            counts[c] * dtype.itemsize,
            2 * c.layers * c.kv_heads * c.head_width * CANVAS * dtype.itemsize,
            free,
        )
        for name, c in KNOWN.items()
    ]


def parameters(config: ModelConfig) -> int:
    """How many weights a model of this shape has."""
    with torch.device("meta"):
        return sum(p.numel() for p in Model(config).parameters())


def label(name: str) -> str:
    """What to call a model: a hub id as it is, of a folder its own name.

    ValueError when it cannot be one, as far as that shows before anything is fetched or read.
    """
    if check_name(name) == "tiny" or not os.path.isdir(name):
        return name
    read_config(Path(name))
    return Path(name).resolve().name


def size(name: str) -> int | None:
    """How many weights a model has, if that is known here."""
    if name not in KNOWN and not os.path.isdir(name):
        return None
    return parameters(KNOWN[name] if name in KNOWN else read_config(Path(name)))


def check_name(name: str) -> str:
    """The name, if it could be a model: "tiny", a folder, or shaped like a hub id."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"the model is {name!r}; give 'tiny', a hub id or a folder")
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, re.ASCII)
    if name != "tiny" and not os.path.isdir(name) and not hub_id:
        raise ValueError(
            f"no model folder at {name!r}; give 'tiny', a hub id such as "
            "GSAI-ML/LLaDA-8B-Instruct, or a folder with config.json and *.safetensors"
        )
    return name


def find(name: str, progress: Progress | None = None) -> Path:
    """The folder behind a name; what a hub id stands for is fetched, unless all of it is here.

    Of a hub repository the small files come first, so that one that cannot be loaded is refused
    before its weights are fetched. Progress as for `load`.
    """
    folder = TINY if check_name(name) == "tiny" else Path(name)
    folder = folder if os.path.isdir(folder) else cached(name)
    if folder is not None:
        return folder
    folder = _fetch(name, SMALL_FILES, tqdm_class=_reporter(None))
    read_config(folder)
    shards = [ONE_FILE]
    if (folder / INDEX).is_file():
        shards = sorted(set(weight_map(folder).values()))
    elif ONE_FILE not in (there := _hub_files(name, folder)):
        raise no_weights(name, there)
    bars = {} if progress is None else {"tqdm_class": _reporter(progress)}
    return _fetch(name, shards, revision=folder.name, **bars)


def cached(name: str) -> Path | None:
    """The folder behind a name if all of the model is on this disk; fetches nothing."""
    try:
        folder = TINY if name == "tiny" else Path(name)
        if not os.path.isdir(folder):
            folder = _fetch(name, SMALL_FILES, local_files_only=True)
        read_config(folder)
        shards = set(weight_map(folder).values()) if (folder / INDEX).is_file() else {ONE_FILE}
    except ValueError:
        return None
    return folder if all((folder / shard).is_file() for shard in shards) else None


def _fetch(name: str, files: list[str], **settings) -> Path:
    """Files of a hub repository, or those of them that are in the local cache -> their folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=files, **settings))
    except GatedRepoError as error:
        reason, cause = "its owner wants you to accept terms first, on its page", error
    except RepositoryNotFoundError as error:
        reason, cause = "there is no such repository, or it is private", error
    except LocalEntryNotFoundError as error:
        reason, cause = "it cannot be reached, and not all of this is in the local cache", error
    except Exception as error:  # a network's libraries raise what they like
        reason, cause = (str(error).strip() or type(error).__name__).splitlines()[0], error
    raise ValueError(
        f"could not fetch {name!r} from the hub: {reason.rstrip('.')}; check the name and the "
        "network, or give a folder"
    ) from cause


def _hub_files(name: str, folder: Path) -> list[str]:
    """Names of a hub repository's files; without a network those that were fetched before."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(name, revision=folder.name)
    except Exception:  # as above; what is missing is said when it is read
        return [path.name for path in folder.iterdir()]


def _reporter(progress: Progress | None):
    """A tqdm class that draws nothing and passes the bytes of a download on."""
    from tqdm.auto import tqdm

    class Reporter(tqdm):
        def __init__(self, *args, **kwargs):
            self.bytes = kwargs.get("unit") == "B"  # the hub also counts files
            super().__init__(*args, **kwargs | {"file": io.StringIO()})

        def display(self, *args, **kwargs):
            if progress is not None and self.bytes and self.total:
                progress("fetching", int(min(self.n, self.total)), int(self.total))

    return Reporter
