"""Caches for diffusion language models: one engine, many policies, every step observable."""

import os

__version__ = "0.1.0"

# Small models spend their time in short parallel regions. By default, OpenMP's threads spin for
# long after each region, and a browser or another process on the same cores then slows a step up to
# 40 times; threads that sleep at once halve the speed on idle cores. A short spin avoids both.
# Read when torch is first imported; values that are already set win.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from d2cache.canvas import Canvas, Plan, Step, Why
from d2cache.decoders import Decoder, decoders, make_decoder
from d2cache.edits import Edit
from d2cache.generate import fill, generate
from d2cache.model import CONFIGS, Model, ModelConfig
from d2cache.models import load
from d2cache.policies import CachePolicy, make_policy, policies
from d2cache.registry import knob
from d2cache.rows import Part
from d2cache.trace import Trace

__all__ = [
    "CONFIGS",
    "CachePolicy",
    "Canvas",
    "Decoder",
    "Edit",
    "Model",
    "ModelConfig",
    "Part",
    "Plan",
    "Step",
    "Trace",
    "Why",
    "decoders",
    "fill",
    "generate",
    "knob",
    "load",
    "make_decoder",
    "make_policy",
    "policies",
]
