"""The families of models: one folder each, and one line each in this table. Nothing else knows their names."""

from __future__ import annotations

from omnimuse.core.layouts import LAYOUTS
from omnimuse.core.registry import Registry
from omnimuse.models.bagel.layout import LAYOUT as BAGEL

TABLE = {
    "WanPipeline": "omnimuse.models.wan",
    "WanVACEPipeline": "omnimuse.models.wan_vace",
    "LucyEditPipeline": "omnimuse.models.lucy_edit",
    "HunyuanVideo15Pipeline": "omnimuse.models.hunyuan_video15",
    "LTX2Pipeline": "omnimuse.models.ltx2",
    "ZImagePipeline": "omnimuse.models.z_image",
    "FluxPipeline": "omnimuse.models.flux",
    "ChromaPipeline": "omnimuse.models.chroma",
    "StableAudioPipeline": "omnimuse.models.stable_audio",
    "LongCatImagePipeline": "omnimuse.models.longcat_image",
    "QwenImageLayeredPipeline": "omnimuse.models.qwen_image_layered",
    "LongCatImageEditPipeline": "omnimuse.models.longcat_image_edit",
    "BriaPipeline": "omnimuse.models.bria",
    "OvisImagePipeline": "omnimuse.models.ovis_image",
    "QwenImagePipeline": "omnimuse.models.qwen_image",
    "QwenImageEditPipeline": "omnimuse.models.qwen_image_edit",
    "QwenImageEditPlusPipeline": "omnimuse.models.qwen_image_edit_plus",
    "FluxKontextPipeline": "omnimuse.models.flux_kontext",
    "FluxControlPipeline": "omnimuse.models.flux_control",
    "FluxFillPipeline": "omnimuse.models.flux_fill",
    "Flux2KleinPipeline": "omnimuse.models.flux2",
    "Flux2Pipeline": "omnimuse.models.flux2_dev",
    "StableDiffusion3Pipeline": "omnimuse.models.stable_diffusion_3",
    "Lumina2Pipeline": "omnimuse.models.lumina2",
    "GlmImagePipeline": "omnimuse.models.glm_image",
    "BagelForConditionalGeneration": "omnimuse.models.bagel",
    "Qwen3ForCausalLM": "omnimuse.models.qwen3_text",
    "TalkAndDrawPipeline": "omnimuse.models.talk_and_draw",
    "Qwen3TTSForConditionalGeneration": "omnimuse.models.qwen3_tts",
    "Qwen3OmniMoeForConditionalGeneration": "omnimuse.models.qwen3_omni",
    "Qwen2_5OmniForConditionalGeneration": "omnimuse.models.qwen25_omni",
    "CogView4Pipeline": "omnimuse.models.cogview4",
    "AutoModelForCausalLM": "omnimuse.models.library_text",
}
"""The class name in a checkpoint's `model_index.json`, or in its `config.json` -> the family's package."""

LAYOUTS.append(BAGEL)

REGISTRY = Registry(TABLE)
