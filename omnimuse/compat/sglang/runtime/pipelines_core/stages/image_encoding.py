"""`sglang.multimodal_gen.runtime.pipelines_core.stages.image_encoding`: pictures that come with a prompt."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.distributed import get_local_torch_device
from omnimuse.compat.sglang.runtime.managers.forward_context import set_forward_context
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.decoding import spread_of
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import ModelError


class ImageEncodingStage(PipelineStage):
    """What an encoder sees in the picture, in `image_embeds`.

    With a `text_encoder` in its place a subclass encodes prompt and picture together, in a `forward` of its own: how
    they are put together is a family's, not the stock stage's.
    """

    def __init__(
        self, image_processor: Any, image_encoder: Any = None, text_encoder: Any = None, vae_image_processor: Any = None
    ) -> None:
        super().__init__()
        self.image_processor, self.image_encoder = image_processor, image_encoder
        self.text_encoder, self.vae_image_processor = text_encoder, vae_image_processor

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        if self.image_encoder is None:
            raise ModelError(
                f"{type(self).__name__} has no image_encoder; a stage that encodes texts and pictures together needs a "
                "`forward` of its own"
            )
        config = server_args.pipeline_config
        picture = config.preprocess_image(batch.pil_image, self.vae_image_processor)
        given = self.image_processor(images=picture, return_tensors="pt").to(get_local_torch_device())
        with torch.no_grad(), set_forward_context(current_timestep=0):
            made = self.image_encoder(**given, **config.image_encoder_extra_args)
        batch.image_embeds.append(config.postprocess_image(made))
        return batch

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        return VerificationResult().add_check("pil_image", batch.pil_image, StageValidators.not_none)


class ImageVAEEncodingStage(PipelineStage):
    """The picture as latents, in `image_latent`, as `postprocess_image_latent` of the pipeline's configuration has it.

    For an autoencoder of videos, the picture is their first frame and the others are empty. Where the checkpoint says
    how latents spread by channel, they are brought to that; else by its one factor.
    """

    def __init__(self, vae: Any, **kwargs: Any) -> None:
        super().__init__()
        self.vae = vae

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        config = server_args.pipeline_config
        picture = self.preprocess(batch.pil_image, batch.height, batch.width)  # [1, 3, h, w]
        if len(config.prepare_latent_shape(batch, 1, 1)) == 5:
            later = picture.new_zeros(*picture.shape[:2], batch.num_frames - 1, *picture.shape[-2:])
            picture = torch.cat([picture[:, :, None], later], dim=2)  # [1, 3, F, h, w]
        made = self.vae.encode(picture.to(next(self.vae.parameters()).dtype))
        found = self.retrieve_latents(made, batch.generator)
        batch.image_latent = config.postprocess_image_latent(self.scale_and_shift(found, server_args), batch)
        return batch

    def preprocess(self, image: Any, height: Any, width: Any) -> Tensor:
        """A picture in this size, values in [-1, 1]: [1, 3, h, w]."""
        return VaeImageProcessor().preprocess(image, height=height, width=width).to(get_local_torch_device())

    def retrieve_latents(self, encoder_output: Any, generator: Any = None, sample_mode: str = "sample") -> Tensor:
        """Of what an autoencoder gives, a draw or the likeliest."""
        spread = encoder_output.latent_dist if hasattr(encoder_output, "latent_dist") else encoder_output
        drawing = generator[0] if isinstance(generator, list) else generator
        found: Tensor = spread.sample(drawing) if sample_mode == "sample" else spread.mode()
        return found

    def scale_and_shift(self, latents: Tensor, server_args: ServerArgs) -> Tensor:
        """Latents as the denoising network sees them."""
        arch = server_args.pipeline_config.vae_config.arch_config
        if (spread := spread_of(arch, latents)) is not None:
            return (latents - spread[0]) / spread[1]
        return (latents - (arch.shift_factor or 0.0)) * arch.scaling_factor

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        return VerificationResult().add_check("pil_image", batch.pil_image, StageValidators.not_none)

    def verify_output(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        return VerificationResult().add_check("image_latent", batch.image_latent, StageValidators.is_tensor)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
