"""TeaCache for the transformer with two lists of blocks, of which ranks may share the tokens."""

from __future__ import annotations

from torch import Tensor, nn

from omnimuse.compat.vllm_omni.diffusion.cache.teacache.config import _MODEL_COEFFICIENTS
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.context import CacheContext
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.extractors import register_extractor


def extract_double_context(
    module: nn.Module,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    txt_ids: Tensor,
    guidance: Tensor,
) -> CacheContext:
    hidden_states = module.x_embedder(hidden_states)
    temb = module.time_text_embed(timestep * 1000, guidance * 1000, pooled_projections)
    encoder_hidden_states = module.context_embedder(encoder_hidden_states)
    turns = module.rope_preparer(txt_ids, img_ids)
    modulated_input = module.transformer_blocks[0].norm1(hidden_states, emb=temb)[0]

    def run_transformer_blocks():
        h, e = hidden_states, encoder_hidden_states
        for block in (*module.transformer_blocks, *module.single_transformer_blocks):
            e, h = block(h, e, temb, turns)
        return (h, e)

    def postprocess(h):
        return (module.proj_out(module.norm_out(h, temb)),)

    return CacheContext(
        modulated_input=modulated_input,
        hidden_states=hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        temb=temb,
        run_transformer_blocks=run_transformer_blocks,
        postprocess=postprocess,
    )


register_extractor("DoubleTransformer2DModel", extract_double_context)
_MODEL_COEFFICIENTS["DoubleTransformer2DModel"] = [1.0, 0.0]
