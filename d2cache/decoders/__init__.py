"""Decoders, one file for each. A new file here is found by everything else."""

from d2cache.decoders.base import Decoder
from d2cache.registry import describe, import_siblings, make

import_siblings(__name__, __path__)


def make_decoder(name: str, **knobs) -> Decoder:
    """A decoder from its registered name; raises ValueError for an unknown name, knob or value."""
    return make(Decoder.registry, "decoder", name, knobs)


def decoders() -> list[dict]:
    """Every registered decoder: name, paper, help and knobs (see `d2cache.registry.describe`)."""
    return describe(Decoder.registry)


__all__ = ["Decoder", "decoders", "make_decoder"]
