"""TeaCache for the transformer of two streams, as the guide has it: an extractor, its registration, coefficients."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omnimuse.compat.vllm_omni.diffusion.cache.teacache.config import _MODEL_COEFFICIENTS
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.context import CacheContext
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.extractors import register_extractor


def extract_medium_context(
    module: nn.Module,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    **kwargs: Any,
) -> CacheContext:
    height, width = (side // module.patch_size for side in hidden_states.shape[-2:])
    hidden_states = module.pos_embed(hidden_states).contiguous()
    temb = module.time_text_embed(timestep, pooled_projections)
    encoder_hidden_states = module.context_embedder(encoder_hidden_states)
    modulated_input = module.transformer_blocks[0].norm1(hidden_states, emb=temb)[0]

    def run_transformer_blocks():
        h, e = hidden_states, encoder_hidden_states
        for block in module.transformer_blocks:
            e, h = block(h, e, temb)
        return (h, e)

    def postprocess(h):
        return (module.unpatched(h, temb, height, width),)

    return CacheContext(
        modulated_input=modulated_input,
        hidden_states=hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        temb=temb,
        run_transformer_blocks=run_transformer_blocks,
        postprocess=postprocess,
    )


register_extractor("MediumTransformer2DModel", extract_medium_context)
_MODEL_COEFFICIENTS["MediumTransformer2DModel"] = [2.0, 1.0, 0.0]
