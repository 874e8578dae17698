"""How sure a model is of the tokens it writes, and how often it is right to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2cache import prompts
from d2cache.decoders import make_decoder
from d2cache.generate import generate
from d2cache.model import Model
from d2cache.teaching import tasks
from d2cache.teaching.exam import held_out

BINS = 10  # of equal width, over confidence
SPARE = 8  # masks for the end of an answer
SATURATED = 1 - 1e-6  # from here on, float32 leaves hardly any order between confidences


@dataclass(frozen=True)
class Calibration:
    """Confidence (N,) of written tokens, and whether each was the reference's (N,) bool."""

    confidence: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: |share right - mean confidence|, averaged over the
        tokens of `BINS` bins of confidence (arXiv 1706.04599 Eq. 3)."""
        at = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        gaps = [(at == b) @ (self.confidence - self.right) for b in range(BINS)]
        return float(np.abs(gaps).sum() / len(self.right))

    @property
    def saturated(self) -> float:
        """Share of the tokens whose confidence is above `SATURATED`."""
        return float((self.confidence > SATURATED).mean())


@torch.inference_mode()
def calibration(model: Model, family: str, count: int, seed: int, batch: int = 16) -> Calibration:
    """Let a model write `count` held-out answers, most confident position first, with no prior.

    After each step the token that was written is compared with that of the reference answer and
    replaced by it, so that the model is only asked about texts of its world, also where many
    answers are right. What follows the first end of text does not count.

    Raises ValueError where the model's tokenizer needs more tokens for a gap than it has.
    """
    problems = held_out(family, count, seed)
    sure, right = [], []
    for at in range(0, count, batch):
        texts = [_asked(model, problem) for problem in problems[at : at + batch]]
        canvases, references = [list(part) for part in zip(*texts, strict=True)]
        wanted, counts = _line_up(references, model)
        # eager: the steps' tokens are tensors of their own, which may be changed
        decoder = make_decoder("confidence", sigma=0.0)
        for step in generate(model, canvases, "none", decoder, gen_length=0, eager=True):
            judged = step.written & counts
            sure.append(step.confidence[judged].float().cpu().numpy())
            right.append((step.tokens == wanted)[judged].cpu().numpy())
            step.after.tokens[step.written] = wanted[step.written]
    return Calibration(np.concatenate(sure), np.concatenate(right))


def _asked(model: Model, problem: tasks.Problem) -> tuple[Tensor, Tensor]:
    """A canvas with masks, and what belongs on it: ids (T,) each."""
    if tasks.FAMILIES[problem.family].gaps:
        canvas, reference = model.encode_gaps(problem.prompt), _plain(model, problem.answer)
        if len(canvas) != len(reference):
            raise ValueError(
                f"the tokens of {model.config.name} do not fit the gaps of {problem.prompt!r:.60}; "
                "leave out this family"
            )
        return canvas, reference
    prompt, answer = model.encode(problem.prompt), _plain(model, f" {problem.answer}")
    reference = torch.cat([prompt, answer, answer.new_full((SPARE,), model.config.eos_id)])
    canvas = reference.clone()
    canvas[len(prompt) :] = model.config.mask_id
    return canvas, reference


def _plain(model: Model, text: str) -> Tensor:
    return torch.tensor(prompts.plain_ids(model.tokenizer, text))


def _line_up(references: list[Tensor], model: Model) -> tuple[Tensor, Tensor]:
    """The references with padding on the left, (B,T) int64, and which of their tokens count."""
    eos = model.config.eos_id
    size = max(map(len, references))
    wanted = torch.stack([F.pad(ids, (size - len(ids), 0)) for ids in references])
    counts = (wanted == eos).cumsum(1) - (wanted == eos).int() == 0
    return wanted.to(model.device), counts.to(model.device)
