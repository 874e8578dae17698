"""Caches for diffusion language models: one engine, many policies, every step observable."""

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
