"""A model that computes elsewhere: what this process has to know of it."""

from __future__ import annotations

import torch

import d2cache
from d2cache import models
from d2cache.weights import Progress


class Outline(d2cache.Model):
    """A model without weights: it knows its shape and its tokens, and computes nothing.

    A run that is asked of it is checked like any other, for the host's memory, and makes no step.
    """

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def outline(name: str, label: str, progress: Progress | None = None) -> Outline:
    """The outline of a model that `d2cache.load` can load. Its files are fetched if they are not
    on this disk. label: what its traces call it. ValueError for what cannot be loaded."""
    config, tokenizer = models.described(models.find(name, progress), label)
    with torch.device("meta"):
        model = Outline(config)
    model.requires_grad_(False).eval()
    model.tokenizer = tokenizer
    return model
