"""The page's named endpoints, which are its MCP tools too: plain values in, JSON out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict

import d2cache
from analysis.page.host import Host
from analysis.page.query import Asked, Lane

# What an argument may be, by its annotation: Python's types, and how they are called.
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int, float), "a number"),
    "dict | None": ((dict, type(None)), "an object of knobs and their values"),
    "list[str]": ((list,), "a list of texts"),
}


def one_line(endpoint: Callable, error: type[Exception]) -> Callable:
    """An endpoint that raises this error, one line, for what it cannot do, wrong types included."""
    parameters = inspect.signature(endpoint).parameters

    @functools.wraps(endpoint)
    def call(*args, **kwargs):
        try:
            for name, value in [*zip(parameters, args, strict=False), *kwargs.items()]:
                _check(name, value, str(parameters[name].annotation))
            return endpoint(*args, **kwargs)
        except ValueError as fault:
            raise error(str(fault)) from fault

    return call


def _check(name: str, value, annotation: str) -> None:
    types, words = TYPES[annotation]
    texts = value if annotation == "list[str]" and isinstance(value, list) else []
    if not isinstance(value, types) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"{name} is {repr(value)[:40]}; it must be {words}")


class Endpoints:
    """What a program can ask a page for. ValueError says, in one line, what is wrong."""

    def __init__(self, host: Host):
        self.host = host

    def run(
        self,
        prompt: str,
        policy: str = "d2",
        decoder: str = "confidence",
        gen_length: int = 64,
        block_length: int = 0,
        seed: int = 0,
        model: str = "",
        policy_knobs: dict | None = None,
        decoder_knobs: dict | None = None,
    ) -> dict:
        """Answer a prompt with a diffusion language model under one cache policy and decoder.

        Args:
            prompt: the question; or a text with gaps to fill, written as underscores, one a token
            policy: a name from /policies
            decoder: a name from /decoders
            gen_length: masks to fill, 1 to 256; unused for a text with gaps
            block_length: masks per block, written from left to right; 0 for no blocks
            seed: used when sampling
            model: a label from /models; empty for the first
            policy_knobs: such as {"current_k": 16}; any others have their defaults
            decoder_knobs: such as {"sigma": 0}

        Returns:
            text, lane, model, device, steps, seconds, answer_tokens, tokens_per_second, hit_rate
            (share of positions reused), flops, flops_none, flops_vs_none
        """
        lane = Lane(policy, policy_knobs or {}, decoder, decoder_knobs or {})
        asked = Asked(prompt, (lane,), self._label(model), gen_length, block_length, seed)
        return self.host.results(asked)[0]

    def compare(
        self,
        prompt: str,
        lanes: list[str],
        gen_length: int = 64,
        block_length: int = 0,
        seed: int = 0,
        model: str = "",
    ) -> list[dict]:
        """Answer a prompt under several cache policies, one after the other.

        Args:
            prompt: the question; or a text with gaps to fill, written as underscores, one a token
            lanes: such as ["none", "d2,current_k=16", "d2/confidence,sigma=0"]: a policy and its
                knobs, then a decoder and its knobs
            gen_length: masks to fill, 1 to 256; unused for a text with gaps
            block_length: masks per block, written from left to right; 0 for no blocks
            seed: used when sampling
            model: a label from /models; empty for the first

        Returns:
            for each lane what /run returns, and agreement: the share of the answer's tokens, up to
            the later of the two ends, that are the same as in the first lane
        """
        parsed = tuple(Lane.parse(lane) for lane in lanes)
        asked = Asked(prompt, parsed, self._label(model), gen_length, block_length, seed)
        return self.host.results(asked)

    def policies(self) -> list[dict]:
        """The cache policies: name, paper, how each works, knobs with default, bounds and help."""
        return [_plain(entry) for entry in d2cache.policies()]

    def decoders(self) -> list[dict]:
        """The decoders: name, paper, how each works, knobs with default, bounds and help."""
        return [_plain(entry) for entry in d2cache.decoders()]

    def models(self) -> list[dict]:
        """The models that this page offers: label, and whether it is loaded."""
        known = self.host.models
        return [{"model": label, "loaded": label in known.loaded} for label in known.offered]

    def _label(self, model: str) -> str:
        return model or self.host.models.first


def _plain(entry: dict) -> dict:
    return entry | {"knobs": [asdict(knob) for knob in entry["knobs"]]}
