"""Caches for diffusion language models: one engine, many policies, every step observable."""

import os

# Small models spend their time in short parallel regions. Threads that spin at each one's end, the
# default of OpenMP, slow a step up to 40 times when a browser or another process shares the cores.
# Read when torch is first imported; a value that is already set wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from d2cache.canvas import Canvas, Plan, Step, Why
from d2cache.decoders import Decoder, decoders, make_decoder
from d2cache.generate import generate
from d2cache.model import CONFIGS, Model, ModelConfig
from d2cache.policies import CachePolicy, make_policy, policies
from d2cache.registry import knob
from d2cache.trace import Trace
from d2cache.weights import load

__all__ = [
    "CONFIGS", "CachePolicy", "Canvas", "Decoder", "Model", "ModelConfig", "Plan", "Step", "Trace",
    "Why", "decoders", "generate", "knob", "load", "make_decoder", "make_policy", "policies",
]  # fmt: skip
