"""A pipeline in four methods, so that the engine owns its loop: it batches, stops, shows itself and waits."""

import copy

from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput
from omnimuse.compat.vllm_omni.diffusion.distributed.utils import get_local_device
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsStepExecution


def get_drawing_post_process_func(od_config):
    """From values in [-1, 1] to [0, 1]."""

    def post_process_func(images):
        return (images / 2 + 0.5).clamp(0, 1)

    return post_process_func


class DrawingPipeline(nn.Module, SupportsStepExecution):
    """Made from a checkpoint with `unet` and `scheduler`; the size of a picture is the network's own."""

    def __init__(self, *, od_config, prefix=""):
        super().__init__()
        self.device, dtype = get_local_device(), od_config.dtype
        self.unet = UNet2DModel.from_pretrained(od_config.model, subfolder="unet", torch_dtype=dtype).to(self.device)
        self.scheduler = DDIMScheduler.from_pretrained(od_config.model, subfolder="scheduler")

    def load_weights(self, weights):
        """Nothing is left to load."""

    def prepare_encode(self, state, **kwargs):
        size, steps = self.unet.config.sample_size, state.sampling.num_inference_steps
        shape = (1, self.unet.config.in_channels, size, size)
        state.latents = randn_tensor(
            shape, generator=state.sampling.generator, device=self.device, dtype=self.unet.dtype
        )
        state.scheduler = copy.deepcopy(self.scheduler)
        state.scheduler.set_timesteps(steps, device=self.device)
        state.timesteps = state.scheduler.timesteps
        return state

    def denoise_step(self, input_batch, **kwargs):
        return self.unet(input_batch.latents, input_batch.timesteps, return_dict=False)[0]

    def step_scheduler(self, state, noise_pred, **kwargs):
        moved = state.scheduler.step(noise_pred, state.current_timestep, state.latents, return_dict=False)
        state.latents = moved[0]
        state.step_index += 1

    def post_decode(self, state, **kwargs):
        return DiffusionOutput(output=state.latents)
