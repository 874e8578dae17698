"""Early positions and rare tokens first."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.model import Model
from d2cache.registry import knob


@dataclass
class PositionCalibrated(Decoder, key="pc"):
    """PC-Sampler (arXiv 2508.13021): weigh confidence by position and by how rare the token is.

    score = exp(-lambda i) * min(-p ln f, alpha): i counts positions from the answer's start, p is
    the candidate's probability and f the frequency of its token in a corpus. The frequencies come
    with the model (`Model.frequency`, from `frequency.safetensors` in its folder); without them,
    all tokens count as equally frequent. The public code of d2Cache leaves out the position
    weight: that is `position` 0. No certainty prior by default: this rule has its own.
    """

    sigma: float = knob(
        0.0, 0.0, 100.0, "certainty prior: width of its Gaussian, in positions; 0 is off"
    )
    position: float = knob(0.25, 0.0, 10.0, "lambda: how fast the weight falls with the position")
    alpha: float = knob(10.0, 0.01, 100.0, "upper bound of the calibrated confidence")

    def begin(self, model: Model, canvas: Canvas) -> None:
        frequency = model.frequency
        if frequency is None:
            frequency = torch.full((model.config.vocab,), 1 / model.config.vocab)
        self.surprise = -(frequency.double() + 1e-10).log().to(model.device)

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        chosen = self.surprise[candidates.tokens]
        calibrated = (self.score(candidates).double() * chosen).clamp(max=self.alpha)
        # as logarithms: exp(-lambda i) of distant positions would round to 0 and tie
        score = calibrated.clamp_min(1e-300).log() - self.position * canvas.position
        score = score.masked_fill(candidates.confidence == -torch.inf, -torch.inf)
        return ops.top_k_mask(score, canvas.eligible, self.tokens_per_step)
