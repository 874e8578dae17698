"""Decoders: one rule a file. A new file here is known to everything else."""

from d2cache.decoders.base import Decoder
from d2cache.registry import describe, import_siblings, make

import_siblings(__name__, __path__)


def make_decoder(name: str, **knobs) -> Decoder:
    """A decoder from its registered name; ValueError for an unknown name, knob or value."""
    return make(Decoder.registry, "decoder", name, knobs)


def decoders() -> list[dict]:
    """Every registered decoder: name, paper, help and knobs."""
    return describe(Decoder.registry)


__all__ = ["Decoder", "decoders", "make_decoder"]
