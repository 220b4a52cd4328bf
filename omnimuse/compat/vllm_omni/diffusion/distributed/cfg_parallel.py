"""`vllm_omni.diffusion.distributed.cfg_parallel`: guidance of two predictions, which two ranks may share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import axis
from omnimuse.core.errors import ModelError
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import BRANCHES, Axis

Prediction = Tensor | tuple[Tensor, ...]


class CFGParallelMixin:
    """What a pipeline inherits to be guided: its `transformer` predicts, its `scheduler` moves the latents.

    It overrides `predict_noise` where the transformer is called otherwise, and `combine_cfg_noise` where predictions
    are combined otherwise. On two ranks each makes one of the predictions, and both know the two.
    """

    transformer: nn.Module
    scheduler: Any

    def predict_noise_maybe_with_cfg(
        self,
        do_true_cfg: bool,
        true_cfg_scale: float,
        positive_kwargs: Mapping[str, Any],
        negative_kwargs: Mapping[str, Any] | None,
        cfg_normalize: bool = True,
        output_slice: int | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """The prediction of a step, guided where `do_true_cfg` says so; of each [B, S, *] the first `output_slice`.

        `kwargs`, if there are any, go to `combine_cfg_noise`, which then must take them.
        """
        if not do_true_cfg:
            return _alone(_cut(_several(self.predict_noise(**positive_kwargs)), output_slice))
        if negative_kwargs is None:
            raise ValueError("do_true_cfg without negative_kwargs: give what the negative prediction is made from")
        branches = axis(BRANCHES, "CFGParallelMixin")
        if branches.size == 1:
            positive, negative = (
                _cut(_several(self.predict_noise(**each)), output_slice) for each in (positive_kwargs, negative_kwargs)
            )
        else:
            own = self.predict_noise(**(positive_kwargs if branches.index == 0 else negative_kwargs))
            parts = [gathered(branches, each[None], [1] * branches.size) for each in _cut(_several(own), output_slice)]
            positive, negative = (tuple(part[rank][0] for part in parts) for rank in (0, 1))
        more = {} if kwargs is None else {"kwargs": kwargs}
        return self.combine_cfg_noise(_alone(positive), _alone(negative), true_cfg_scale, cfg_normalize, **more)

    def predict_noise_with_multi_branch_cfg(
        self,
        do_true_cfg: bool,
        true_cfg_scale: float | Mapping[str, float],
        branches_kwargs: Sequence[Mapping[str, Any]],
        cfg_normalize: bool = False,
        output_slice: int | None = None,
    ) -> Prediction:
        """The same of several branches, the positive one first; without `do_true_cfg` that one alone."""
        if not do_true_cfg:
            return _alone(_cut(_several(self.predict_noise(**branches_kwargs[0])), output_slice))
        ranks = axis(BRANCHES, "CFGParallelMixin")
        own: dict[int, tuple[Tensor, ...]] = {}
        for number in range(ranks.index, len(branches_kwargs), ranks.size):
            own[number] = _cut(_several(self.predict_noise(**branches_kwargs[number])), output_slice)
        made = [_alone(each) for each in _of_all_ranks(ranks, own, len(branches_kwargs))]
        return self.combine_multi_branch_cfg_noise(made, true_cfg_scale, cfg_normalize)

    def combine_multi_branch_cfg_noise(
        self,
        predictions: Sequence[Prediction],
        true_cfg_scale: float | Mapping[str, float],
        cfg_normalize: bool = False,
    ) -> Prediction:
        """As with two branches; a pipeline with more of them, or with several scales, has its own."""
        if len(predictions) != 2 or isinstance(true_cfg_scale, Mapping):
            raise ModelError(
                f"{len(predictions)} branches with true_cfg_scale={true_cfg_scale} need a pipeline's own "
                "combine_multi_branch_cfg_noise; write one"
            )
        return self.combine_cfg_noise(predictions[0], predictions[1], true_cfg_scale, cfg_normalize)

    def check_cfg_parallel_validity(self, true_cfg_scale: float, has_neg_prompt: bool) -> bool:
        """Whether ranks that share guidance have something to share: both predictions."""
        alone = axis(BRANCHES, "CFGParallelMixin").size == 1
        return alone or (true_cfg_scale > 1 and has_neg_prompt)

    def predict_noise(self, *args: Any, **kwargs: Any) -> Prediction:
        """One prediction; of a transformer that returns a tuple of one, or diffusers' record of one, that."""
        made: Any = self.transformer(*args, **kwargs)
        if isinstance(made, Mapping):
            made = tuple(made.values())
        found: Prediction = made[0] if isinstance(made, tuple) and len(made) == 1 else made
        return found

    def combine_cfg_noise(
        self,
        positive_noise_pred: Prediction,
        negative_noise_pred: Prediction,
        true_cfg_scale: float,
        cfg_normalize: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """n + scale (p - n), for each of several; `cfg_normalize` gives it the norm of p in every token."""
        made = []
        for p, n in zip(_several(positive_noise_pred), _several(negative_noise_pred), strict=True):
            guided = n + true_cfg_scale * (p - n)
            made.append(self.cfg_normalize_function(p, guided) if cfg_normalize else guided)
        return _alone(tuple(made))

    def cfg_normalize_function(self, noise_pred: Tensor, comb_pred: Tensor) -> Tensor:
        """`comb_pred` with the norm that `noise_pred` has in every token."""
        return comb_pred * (torch.norm(noise_pred, dim=-1, keepdim=True) / torch.norm(comb_pred, dim=-1, keepdim=True))

    def scheduler_step_maybe_with_cfg(
        self,
        noise_pred: Prediction,
        t: Any,
        latents: Prediction,
        do_true_cfg: bool,
        per_request_scheduler: Any = None,
        generator: torch.Generator | None = None,
    ) -> Prediction:
        """The latents after a step; every rank computes the same. `per_request_scheduler` stands in for the own one."""
        return self.scheduler_step(noise_pred, t, latents, per_request_scheduler, generator)

    def scheduler_step(
        self,
        noise_pred: Prediction,
        t: Any,
        latents: Prediction,
        per_request_scheduler: Any = None,
        generator: torch.Generator | None = None,
    ) -> Prediction:
        """What the scheduler makes of a prediction."""
        scheduler = self.scheduler if per_request_scheduler is None else per_request_scheduler
        drawn = {} if generator is None else {"generator": generator}
        moved: Prediction = scheduler.step(noise_pred, t, latents, return_dict=False, **drawn)[0]
        return moved


def _of_all_ranks(ranks: Axis, own: Mapping[int, tuple[Tensor, ...]], count: int) -> list[tuple[Tensor, ...]]:
    """The predictions of all branches, of which each rank made every so manyth; a rank with one less sends zeros."""
    if ranks.size == 1:
        return [own[number] for number in range(count)]
    found: dict[int, tuple[Tensor, ...]] = {}
    for first in range(0, count, ranks.size):
        mine = own.get(first + ranks.index) or tuple(map(torch.zeros_like, own[ranks.index]))
        parts = [gathered(ranks, each[None], [1] * ranks.size) for each in mine]
        found |= {first + rank: tuple(part[rank][0] for part in parts) for rank in range(ranks.size)}
    return [found[number] for number in range(count)]


def _several(prediction: Prediction) -> tuple[Tensor, ...]:
    return prediction if isinstance(prediction, tuple) else (prediction,)


def _alone(predictions: tuple[Tensor, ...]) -> Prediction:
    return predictions[0] if len(predictions) == 1 else predictions


def _cut(predictions: tuple[Tensor, ...], most: int | None) -> tuple[Tensor, ...]:
    return predictions if most is None else tuple(each[:, :most] for each in predictions)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
