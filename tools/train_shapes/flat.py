"""Parameters, gradients, AdamW state and moving average of several modules, each as one flat tensor.

One all-reduce, one clip, one fused update per step.  The modules' parameters become views of the flat
tensor (4-dimensional ones channels-last), so nothing else changes for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.train_shapes.parallel import Rank

_ALIGNMENT = 32
NOTES = 8  # spare slots behind the gradients that ride along in the all-reduce


class FlatTrainer:
    """AdamW with clipping and a moving average over ``modules``.

    ``notes`` are numbers averaged over the processes with each step (loss, clock): write, ``reduce``, read.
    """

    def __init__(self, modules: dict[str, nn.Module], rank: Rank, betas: tuple[float, float], decay: float) -> None:
        self.modules, self.rank, self._decay = modules, rank, decay
        self._parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        total = sum(-(-p.numel() // _ALIGNMENT) * _ALIGNMENT for p in self._parameters)
        self.flat = nn.Parameter(torch.zeros(total, device=rank.device))
        self._gradients = torch.zeros(total + NOTES, device=rank.device)
        self.flat.grad = self._gradients[:total]
        self.notes = self._gradients[total:]
        for parameter, value, gradient in zip(
            self._parameters, self._views(self.flat.data), self._views(self.flat.grad), strict=True
        ):
            value.copy_(parameter.data)
            parameter.data, parameter.grad = value, gradient
        self.average = self.flat.data.clone()
        self._optimizer = torch.optim.AdamW([self.flat], lr=0.0, betas=betas, weight_decay=0.01, fused=True)
        self.steps = 0
        self._usual_norm = 0.0

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        offset = 0
        for parameter in self._parameters:
            part = flat[offset : offset + parameter.numel()]
            offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
            if parameter.dim() == 4:
                o, i, h, w = parameter.shape
                yield part.view(o, h, w, i).permute(0, 3, 1, 2)
            else:
                yield part.view(parameter.shape)

    def zero(self) -> None:
        self._gradients.zero_()

    def reduce(self) -> None:
        """Averages gradients and notes over the processes."""
        self.rank.sum(self._gradients)
        self._gradients.div_(self.rank.world)

    def step(self, rate: float, clip: float = 1.0) -> float:
        """One update at learning rate ``rate``; returns the gradient norm.  Outliers are skipped."""
        norm = self.flat.grad.norm().item()
        self.steps += 1
        limit = 8 * self._usual_norm if self.steps > 100 else math.inf
        if not math.isfinite(norm) or norm > limit:
            self._usual_norm *= 1.05
            return norm
        self._usual_norm += (norm - self._usual_norm) * (0.02 if self.steps > 50 else 0.2)
        if norm > clip:
            self.flat.grad.mul_(clip / norm)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self.average.lerp_(self.flat.data, 1 - min(self._decay, (1 + self.steps) / (10 + self.steps)))
        return norm

    def swap_average(self) -> None:
        """Exchanges the weights and their moving average; call twice around an evaluation."""
        held = self.flat.data.clone()
        self.flat.data.copy_(self.average)
        self.average.copy_(held)

    def state(self) -> dict:
        return {
            "flat": self.flat.data,
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "usual_norm": self._usual_norm,
        }

    def load(self, state: dict) -> None:
        self.flat.data.copy_(state["flat"])
        self.average.copy_(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps, self._usual_norm = state["steps"], state["usual_norm"]

    def average_states(self) -> dict[str, dict[str, Tensor]]:
        """The moving average as one contiguous float32 state dict per module."""
        self.swap_average()
        states = {
            name: {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}
            for name, module in self.modules.items()
        }
        self.swap_average()
        return states


def cosine(fraction: float, peak: float, warm_up: float = 0.03, floor: float = 0.01) -> float:
    """Learning rate at ``fraction`` (0..1) of the schedule: linear warm-up, then a cosine to floor*peak."""
    if fraction < warm_up:
        return peak * max(fraction / warm_up, 0.01)
    along = (fraction - warm_up) / (1 - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


def save_atomically(content: dict, path: Path) -> None:
    """torch.save that never leaves a half-written file behind."""
    fresh = path.with_suffix(".partial")
    torch.save(content, fresh)
    fresh.replace(path)
