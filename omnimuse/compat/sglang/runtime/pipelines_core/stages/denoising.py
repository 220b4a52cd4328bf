"""`sglang.multimodal_gen.runtime.pipelines_core.stages.denoising`: the loop, whose iteration belongs to the engine.

The engine asks for the `evaluations` of a step, has networks called for all outputs that step together, and gives what
they predicted to `take_step`. `forward` is the same for one output without an engine's help.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.contract.surroundings import here, inside
from omnimuse.compat.diffusers.load import bar
from omnimuse.compat.sglang.runtime.managers.forward_context import set_forward_context
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import ModelError

POSITIVE, NEGATIVE = "positive", "negative"
Variables = dict[str, Any]
"""What a loop works with, by the names that `_prepare_denoising_loop` gives them."""


@dataclass(frozen=True)
class Evaluation:
    """One prediction of one branch: `call(**given)`, and what is then done to it.

    Those that stack are calls of a network with tensors of one output each: several of one `kind` can be one call.
    What is `spread` is given this rank's part of the tokens.
    """

    step: int
    call: Callable[..., Any]
    given: Mapping[str, Any]
    done: Callable[[Tensor], Tensor]
    kind: Hashable = None
    spread: bool = False

    def alone(self) -> Tensor:
        """The prediction by a call of its own."""
        return self.done(self.called(self.given, self.step))

    def called(self, given: Mapping[str, Any], step: int) -> Tensor:
        """What `call` makes of what one output, or several, give it."""
        if inside():
            here("a denoising loop").spread = self.spread
        with set_forward_context(current_timestep=step):
            return tensor_of(self.call(**given))


def kind_of(value: Any) -> Hashable:
    """What must be equal of what two calls are given for them to be one: shapes, and what belongs to no output."""
    if isinstance(value, Tensor):
        alone = value.shape[:1] == (1,)  # else it belongs to no output, and must be the same for all
        numbers = None if alone else value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        return (tuple(value.shape), value.dtype, numbers)
    if isinstance(value, list | tuple):
        return (type(value), tuple(kind_of(each) for each in value))
    if isinstance(value, Mapping):
        return tuple((name, kind_of(value[name])) for name in sorted(value))
    return (type(value), repr(value))


def tensor_of(made: Any) -> Tensor:
    """What a network predicts, which some give in a tuple."""
    found = made[0] if isinstance(made, list | tuple) else made
    if not isinstance(found, Tensor):
        found = found.sample
    assert isinstance(found, Tensor)
    return found


class DenoisingStage(PipelineStage):
    """From noise to latents, by one network or, above and below a boundary, two."""

    def __init__(
        self, transformer: Any, scheduler: Any, pipeline: Any = None, transformer_2: Any = None, vae: Any = None
    ) -> None:
        super().__init__()
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.scheduler, self.vae = scheduler, vae
        self.guidance: float | None = None
        self._kinds: dict[str, tuple[Any, Hashable]] = {}

    # -- what subclasses may change --------------------------------------------------------------------------------

    def get_or_build_guidance(self, bsz: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The scale that a network is told, times 1000: [B]; None where it is told none.

        It is the request's, and the configuration's where the request's weighs two predictions.
        """
        config = self.server_args.pipeline_config
        if not config.should_use_guidance:
            return None
        scale = config.embedded_cfg_scale if self.guidance is None else self.guidance
        return torch.full((bsz,), scale, dtype=torch.float32, device=device).to(dtype) * 1000.0

    def prepare_extra_func_kwargs(self, func: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `kwargs` that `func` takes by name."""
        takes = signature(func).parameters
        return {name: value for name, value in kwargs.items() if name in takes}

    def _prepare_denoising_loop(self, batch: Req, server_args: ServerArgs) -> Variables:
        """What does not change from step to step, and the latents to begin with."""
        config, latents = server_args.pipeline_config, batch.latents
        if batch.timesteps is None or latents is None:
            raise ModelError(
                f"{type(self).__name__} comes before its latents or its timesteps are prepared; add those stages first"
            )
        if config.ti2v_task and batch.pil_image is not None:
            raise ModelError(
                "a first frame that is put into the latents (ti2v_task) is not in the stock stage here; do it in "
                "_prepare_denoising_loop of a subclass"
            )
        shared = batch.do_classifier_free_guidance and batch.true_cfg_scale is None
        self.guidance = None if shared else batch.guidance_scale
        _, batch.did_sp_shard_latents = config.shard_latents_for_sp(batch, latents)
        dtype = self._network_dtype()
        ratio = batch.boundary_ratio
        if ratio is None:
            ratio = config.boundary_ratio if config.boundary_ratio is not None else config.dit_config.boundary_ratio
        common = {"encoder_hidden_states_image": [each.to(dtype) for each in batch.image_embeds]}
        image_kwargs = self._taken(common) if batch.image_embeds else {}
        rotary = self.transformer.rotary_emb if hasattr(self.transformer, "rotary_emb") else None
        conditions = {
            "pos_cond_kwargs": (config.prepare_pos_cond_kwargs, batch.clip_embedding_pos, batch.prompt_attention_mask),
            "neg_cond_kwargs": (
                config.prepare_neg_cond_kwargs,
                batch.clip_embedding_neg,
                batch.negative_attention_mask,
            ),
        }
        found: Variables = {}
        for name, (prepare, clip, mask) in conditions.items():
            asked = name == "pos_cond_kwargs" or batch.do_classifier_free_guidance
            usual = {"encoder_hidden_states_2": clip, "encoder_attention_mask": mask}
            told = prepare(batch, self.device, rotary, dtype=dtype) if asked else {}
            found[name] = self._taken({**usual, **told}) if asked else {}
        step = self.prepare_extra_func_kwargs(
            self.scheduler.step, {"generator": batch.generator, "eta": batch.eta, **batch.extra_step_kwargs}
        )
        return found | {
            "extra_step_kwargs": step,
            "target_dtype": dtype,
            "timesteps": batch.timesteps,
            "num_inference_steps": batch.num_inference_steps,
            "image_kwargs": image_kwargs,
            "latents": latents,
            "boundary_timestep": None if ratio is None else ratio * self.scheduler.config.num_train_timesteps,
            "guidance": self.get_or_build_guidance(latents.shape[0], latents.dtype, latents.device),
            "trajectory_latents": [],
            "trajectory_timesteps": [],
        }

    def _select_and_manage_model(
        self, t_int: int, boundary_timestep: float | None, server_args: ServerArgs, batch: Req
    ) -> tuple[Any, float]:
        """The network of a step, and the scale by which its predictions are weighed."""
        if boundary_timestep is None or t_int >= boundary_timestep:
            return self.transformer, batch.cfg_scale
        second = batch.guidance_scale_2 if batch.true_cfg_scale is None else batch.true_cfg_scale
        return self.transformer_2, batch.guidance_scale if second is None else second

    def _build_attn_metadata(self, i: int, batch: Req, server_args: ServerArgs) -> Any:
        """What attention is told of the step: nothing, for our backends."""
        return None

    def _predict_noise(
        self,
        current_model: Any,
        latent_model_input: Tensor,
        t_expand: Tensor,
        prompt_embeds: Any,
        target_dtype: torch.dtype,
        guidance: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """The prediction of one branch."""
        given = self._inputs(current_model, latent_model_input, t_expand, prompt_embeds, guidance)
        return current_model(**given, **kwargs)

    def _predict_noise_with_cfg(self, **step: Any) -> Tensor:
        """The prediction of a step, of both branches where it is guided; `step` holds what its name says."""
        batch, found = step["batch"], {}
        for branch in branches_of(batch):
            batch.is_cfg_negative = branch == NEGATIVE
            found[branch] = self._evaluation(branch, step).alone()
        return self.combined(batch, found, step["current_guidance_scale"])

    def rescale_noise_cfg(self, noise_cfg: Tensor, noise_pred_text: Tensor, guidance_rescale: float = 0.0) -> Tensor:
        """A guided prediction, and by `guidance_rescale` with the spread of the unguided one (arXiv 2305.08891)."""
        inner = list(range(1, noise_cfg.ndim))
        spread = noise_pred_text.std(dim=inner, keepdim=True) / noise_cfg.std(dim=inner, keepdim=True)
        return guidance_rescale * noise_cfg * spread + (1 - guidance_rescale) * noise_cfg

    def _post_denoising_loop(
        self,
        batch: Req,
        latents: Tensor,
        trajectory_latents: list[Tensor],
        trajectory_timesteps: list[Tensor],
        server_args: ServerArgs,
    ) -> None:
        """Leave the finished latents as the autoencoder takes them."""
        if trajectory_latents:
            batch.trajectory_latents = torch.stack(trajectory_latents, dim=1)
            batch.trajectory_timesteps = torch.stack(trajectory_timesteps)
        batch.latents = server_args.pipeline_config.post_denoising_loop(latents, batch)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """A bar that shows nothing: the engine tells of every step.

        In a `forward` of a subclass's own it is where the loop stands still between steps, as often as it is updated.
        """
        return bar(iterable, total)

    # -- one step, as the engine takes it --------------------------------------------------------------------------

    @property
    def stock(self) -> bool:
        """Whether the engine takes its steps one by one: its `forward` is this one."""
        return not self._has_own("forward")

    @property
    def parted(self) -> bool:
        """Whether the two predictions of a guided step are evaluations of their own."""
        return self.stock and not self._has_own("_predict_noise_with_cfg")

    def evaluations(
        self, batch: Req, server_args: ServerArgs, prepared: Variables, index: int
    ) -> dict[str, Evaluation]:
        """What networks are called for in step `index`, by branch.

        A subclass with a `_predict_noise_with_cfg` of its own has one call for all, which joins them itself.
        """
        step = self._step(batch, server_args, prepared, index)
        if not self.parted:
            done = partial(self._whole, batch, prepared["latents"])
            return {
                POSITIVE: Evaluation(index, self._predict_noise_with_cfg, step, done, spread=batch.did_sp_shard_latents)
            }
        return {branch: self._evaluation(branch, step, prepared["latents"]) for branch in branches_of(batch)}

    def take_step(self, batch: Req, prepared: Variables, index: int, predictions: Mapping[str, Tensor]) -> None:
        """Move the latents by what was predicted in step `index`."""
        timestep = prepared["timesteps"][index]
        if not self.parted:
            noise = predictions[POSITIVE]
        else:
            _, scale = self._select_and_manage_model(
                t_int=int(self.numbers(prepared)[index]),
                boundary_timestep=prepared["boundary_timestep"],
                server_args=self.server_args,
                batch=batch,
            )
            noise = self.combined(batch, predictions, scale)
        prepared["latents"] = self.scheduler.step(
            model_output=noise,
            timestep=timestep,
            sample=prepared["latents"],
            **prepared["extra_step_kwargs"],
            return_dict=False,
        )[0]
        if batch.return_trajectory_latents:
            prepared["trajectory_latents"].append(prepared["latents"])
            prepared["trajectory_timesteps"].append(timestep)

    def combined(self, batch: Req, predictions: Mapping[str, Tensor], scale: float) -> Tensor:
        """The guided prediction of both branches, or that of the only one."""
        positive = predictions[POSITIVE]
        if NEGATIVE not in predictions:
            return positive
        guided = predictions[NEGATIVE] + scale * (positive - predictions[NEGATIVE])
        if batch.guidance_rescale > 0.0:
            return self.rescale_noise_cfg(guided, positive, guidance_rescale=batch.guidance_rescale)
        return guided

    def finish(self, batch: Req, server_args: ServerArgs, prepared: Variables) -> None:
        """After the last step."""
        self._post_denoising_loop(
            batch=batch,
            latents=prepared["latents"],
            trajectory_latents=prepared.get("trajectory_latents", []),
            trajectory_timesteps=prepared.get("trajectory_timesteps", []),
            server_args=server_args,
        )

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        """All steps of one output, one by one."""
        prepared = self._prepare_denoising_loop(batch, server_args)
        with self.progress_bar(total=len(prepared["timesteps"])) as bar:
            for index in range(len(prepared["timesteps"])):
                wanted = self.evaluations(batch, server_args, prepared, index)
                found = {branch: each.alone() for branch, each in wanted.items()}
                self.take_step(batch, prepared, index, found)
                bar.update()
        self.finish(batch, server_args, prepared)
        return batch

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        found.add_check("timesteps", batch.timesteps, StageValidators.min_dims(1))
        found.add_check("num_inference_steps", batch.num_inference_steps, StageValidators.positive_int)
        return found

    # -- inside ----------------------------------------------------------------------------------------------------

    def _has_own(self, name: str) -> bool:
        """Whether a subclass has changed that method."""
        return getattr(type(self), name) is not getattr(DenoisingStage, name)

    def _network_dtype(self) -> torch.dtype:
        return next((each.dtype for each in self.transformer.parameters()), torch.float32)

    def _taken(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Those that the network takes, which are there."""
        there = {name: value for name, value in kwargs.items() if value is not None}
        takes = signature(self.transformer.forward).parameters.values()
        if any(each.kind is Parameter.VAR_KEYWORD for each in takes):
            return there
        return self.prepare_extra_func_kwargs(self.transformer.forward, there)

    def numbers(self, prepared: Variables) -> list[float]:
        """The timesteps, read from the device once."""
        if "numbers" not in prepared:
            prepared["numbers"] = prepared["timesteps"].tolist()
        found: list[float] = prepared["numbers"]
        return found

    def _step(self, batch: Req, server_args: ServerArgs, prepared: Variables, index: int) -> Variables:
        """What step `index` begins with, under the names that hooks take."""
        timestep, latents, dtype = prepared["timesteps"][index], prepared["latents"], prepared["target_dtype"]
        model, scale = self._select_and_manage_model(
            t_int=int(self.numbers(prepared)[index]),
            boundary_timestep=prepared["boundary_timestep"],
            server_args=server_args,
            batch=batch,
        )
        latents = self._part(batch, latents)
        seen = latents.to(dtype)
        if batch.image_latent is not None:
            seen = torch.cat([seen, self._part(batch, batch.image_latent.to(dtype))], dim=1)
        if hasattr(self.scheduler, "scale_model_input"):
            seen = self.scheduler.scale_model_input(seen, timestep)
        return {
            "current_model": model,
            "latent_model_input": seen,
            "t_expand": timestep.to(seen.device).repeat(seen.shape[0]),
            "batch": batch,
            "timestep_index": index,
            "attn_metadata": self._build_attn_metadata(index, batch, server_args),
            "current_guidance_scale": scale,
            "server_args": server_args,
            "latents": latents,
            **{name: prepared[name] for name in ("target_dtype", "guidance")},
            **{name: prepared[name] for name in ("image_kwargs", "pos_cond_kwargs", "neg_cond_kwargs")},
        }

    def _evaluation(self, branch: str, step: Variables, latents: Tensor | None = None) -> Evaluation:
        """One branch of a step; its prediction is that for all `latents`, or without them this rank's part of it."""
        config, negative, batch = step["server_args"].pipeline_config, branch == NEGATIVE, step["batch"]
        prompt = (config.get_neg_prompt_embeds if negative else config.get_pos_prompt_embeds)(batch)
        besides = {**step["image_kwargs"], **step["neg_cond_kwargs" if negative else "pos_cond_kwargs"]}
        spread: bool = batch.did_sp_shard_latents

        def sliced(made: Tensor) -> Tensor:
            found: Tensor = config.slice_noise_pred(made, step["latents"])
            return found if latents is None else self._whole(batch, latents, found)

        names = ("current_model", "latent_model_input", "t_expand", "target_dtype", "guidance")
        if self._has_own("_predict_noise"):
            given = {**{name: step[name] for name in names}, "prompt_embeds": prompt, **besides}
            return Evaluation(step["timestep_index"], self._predict_noise, given, sliced, spread=spread)
        given = self._inputs(
            step["current_model"], step["latent_model_input"], step["t_expand"], prompt, step["guidance"]
        )
        sizes = (batch.height, batch.width, batch.num_frames) if spread else ()  # all ranks must find the same alike
        kind = (id(step["current_model"]), kind_of(given), self._kind(branch, besides), sizes)
        return Evaluation(step["timestep_index"], step["current_model"], {**given, **besides}, sliced, kind, spread)

    def _part(self, batch: Req, latents: Tensor) -> Tensor:
        """What of the latents the network is given on this rank. Between steps every rank has all of them."""
        if not batch.did_sp_shard_latents:
            return latents
        found: Tensor = self.server_args.pipeline_config.shard_latents_for_sp(batch, latents)[0]
        return found

    def _whole(self, batch: Req, latents: Tensor, made: Tensor) -> Tensor:
        """The reverse, of a prediction for `latents`; what a configuration filled up is left out."""
        if not batch.did_sp_shard_latents:
            return made
        gather = self.server_args.pipeline_config.gather_latents_for_sp
        found: Tensor = gather(made, **self.prepare_extra_func_kwargs(gather, {"batch": batch}))
        return found[tuple(slice(size) for size in latents.shape)]

    def _kind(self, branch: str, besides: Mapping[str, Any]) -> Hashable:
        """`kind_of` of what is the same at every step, found once: it may have to look at every number."""
        held = list(besides.values())
        known = self._kinds.get(branch)
        if known is None or len(known[0]) != len(held) or any(a is not b for a, b in zip(known[0], held, strict=True)):
            known = self._kinds[branch] = (held, kind_of(besides))
        return known[1]

    def _inputs(
        self, model: Any, latents: Tensor, timestep: Tensor, prompt_embeds: Any, guidance: Tensor | None
    ) -> dict[str, Any]:
        """What every network is given; one that takes no guidance is not told of it."""
        told = {"guidance": guidance} if "guidance" in signature(model.forward).parameters else {}
        single = isinstance(prompt_embeds, list) and len(prompt_embeds) == 1
        return {
            "hidden_states": latents,
            "encoder_hidden_states": prompt_embeds[0] if single else prompt_embeds,
            "timestep": timestep,
            **told,
        }


def branches_of(batch: Req) -> tuple[str, ...]:
    """Which predictions a step needs."""
    return (POSITIVE, NEGATIVE) if batch.do_classifier_free_guidance else (POSITIVE,)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
