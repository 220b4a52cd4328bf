"""Parameters, gradients, AdamW state and moving average of several modules, each as one flat tensor.

One all-reduce, one clip, one fused update per step.  The modules' parameters become views of the flat
tensor (4-dimensional ones channels-last), so nothing else changes for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.train_shapes.muon import group_by_shape, is_hidden_matrix, update
from tools.train_shapes.parallel import Rank
from tools.train_shapes.store import under

_ALIGNMENT = 32
NOTES = 8  # spare slots behind the gradients that ride along in the all-reduce


@dataclass(frozen=True)
class Optimizer:
    """AdamW's betas, the moving average's decay, and Muon's learning rate as a multiple of AdamW's (0: no Muon), which
    computes in bf16 or, where a processor has no fast one, ``plain``ly in float32.
    """

    betas: tuple[float, float]
    decay: float
    muon: float = 0.0
    plain: bool = False


class FlatTrainer:
    """AdamW (Muon for hidden matrices, if asked) with clipping and a moving average over what learns of ``modules``.

    ``notes`` are numbers averaged over the processes with each step (loss, clock): write, ``reduce``, read.
    """

    def __init__(self, modules: dict[str, nn.Module], rank: Rank, plan: Optimizer) -> None:
        self.modules, self.rank, self._plan = modules, rank, plan
        matrices, rest = self._sorted_parameters()
        self._parameters = [*matrices, *rest]
        self._groups = group_by_shape(matrices)
        inner = sum(p.numel() for p in matrices)
        total = inner + sum(-(-p.numel() // _ALIGNMENT) * _ALIGNMENT for p in rest)
        self.flat = torch.zeros(total, device=rank.device)
        self._gradients = torch.zeros(total + NOTES, device=rank.device)
        self.gradient, self.notes = self._gradients[:total], self._gradients[total:]
        places = zip(self._parameters, self._views(self.flat), self._views(self.gradient), strict=True)
        for parameter, value, gradient in places:
            value.copy_(parameter.data)
            parameter.data, parameter.grad = value, gradient
        self.average = self.flat.clone()
        self._momentum = torch.zeros(inner, device=rank.device)
        self._outer = nn.Parameter(self.flat[inner:])
        self._outer.grad = self.gradient[inner:]
        self._optimizer = torch.optim.AdamW([self._outer], lr=0.0, betas=plan.betas, weight_decay=0.01, fused=True)
        self.steps = 0
        self._usual_norm = 0.0

    def _sorted_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(Muon's matrices sorted by shape, all the others)."""
        every = [pair for module in self.modules.values() for pair in module.named_parameters()]
        named = [(name, parameter) for name, parameter in every if parameter.requires_grad]
        matrices = [p for name, p in named if self._plan.muon and is_hidden_matrix(name, p)]
        chosen = {id(p) for p in matrices}
        return sorted(matrices, key=lambda p: tuple(p.shape)), [p for _, p in named if id(p) not in chosen]

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
        norm = self.gradient.norm().item()
        self.steps += 1
        limit = 8 * self._usual_norm if self.steps > 100 else math.inf
        if not math.isfinite(norm) or norm > limit:
            self._usual_norm *= 1.05
            return norm
        self._usual_norm += (norm - self._usual_norm) * (0.02 if self.steps > 50 else 0.2)
        if norm > clip:
            self.gradient.mul_(clip / norm)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        inner = len(self._momentum)
        dtype = torch.float32 if self._plan.plain else torch.bfloat16
        update(self.flat[:inner], self.gradient[:inner], self._momentum, self._groups, rate * self._plan.muon, dtype)
        self.average.lerp_(self.flat, 1 - min(self._plan.decay, (1 + self.steps) / (10 + self.steps)))
        return norm

    def swap_average(self) -> None:
        """Exchanges the weights and their moving average; call twice around an evaluation."""
        held = self.flat.clone()
        self.flat.copy_(self.average)
        self.average.copy_(held)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, moving average and optimizer state, for a checkpoint."""
        optimizer = {f"optimizer.{name}": value for name, value in self._optimizer.state[self._outer].items()}
        return {"flat": self.flat, "average": self.average, "momentum": self._momentum, **optimizer}

    def notes_to_keep(self) -> dict[str, float]:
        """The numbers that belong with ``tensors``."""
        return {"steps": self.steps, "usual_norm": self._usual_norm}

    def load(self, tensors: dict[str, Tensor], kept: dict[str, float]) -> None:
        """Continues from ``tensors`` and ``notes_to_keep`` of a checkpoint."""
        self.flat.copy_(tensors["flat"])
        self.average.copy_(tensors["average"])
        self._momentum.copy_(tensors["momentum"])
        state = {name: value.clone() for name, value in under("optimizer", tensors).items()}
        self._optimizer.state[self._outer] = {
            name: value if name == "step" else value.to(self.flat.device) for name, value in state.items()
        }
        self.steps, self._usual_norm = int(kept["steps"]), kept["usual_norm"]

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
