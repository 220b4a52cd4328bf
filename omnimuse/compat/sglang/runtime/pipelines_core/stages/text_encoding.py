"""`sglang.multimodal_gen.runtime.pipelines_core.stages.text_encoding`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.distributed import get_local_torch_device
from omnimuse.compat.sglang.runtime.managers.forward_context import set_forward_context
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import ModelError


@dataclass
class _Encoded:
    """What encoders made of a text: embeds, masks, and one vector of the whole, where an encoder gives one."""

    embeds: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    pooled: list[Tensor] = field(default_factory=list)


class TextEncodingStage(PipelineStage):
    """The prompt, and where it is guided the negative one, by every text encoder, as `pipeline_config` says."""

    def __init__(self, text_encoders: Sequence[Any], tokenizers: Sequence[Any]) -> None:
        super().__init__()
        if len(text_encoders) != len(tokenizers):
            raise ModelError(f"{len(text_encoders)} text encoders and {len(tokenizers)} tokenizers; give as many")
        self.text_encoders, self.tokenizers = list(text_encoders), list(tokenizers)

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        every = list(range(len(self.text_encoders)))
        embeds, masks, pooled = self.encode_text(batch.prompt, server_args, every, return_attention_mask=True)
        batch.prompt_embeds += embeds
        batch.pooled_embeds += pooled
        batch.prompt_attention_mask = [*(batch.prompt_attention_mask or []), *masks]
        if batch.do_classifier_free_guidance:
            embeds, masks, pooled = self.encode_text(
                batch.negative_prompt, server_args, every, return_attention_mask=True
            )
            batch.negative_prompt_embeds += embeds
            batch.neg_pooled_embeds += pooled
            batch.negative_attention_mask = [*(batch.negative_attention_mask or []), *masks]
        return batch

    def prepare_tokenizer_kwargs(self, tokenizer_kwargs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """How a tokenizer is called: the encoder's own way, with the pipeline's over it."""
        return {**tokenizer_kwargs, **kwargs}

    def encode_text(
        self,
        text: Any,
        server_args: ServerArgs,
        encoder_index: int | Sequence[int] | None = None,
        return_attention_mask: bool = False,
        **choices: Any,
    ) -> Any:
        """(embeds, masks, pooled) of a text, or of several, by the encoders named: lists, an entry for each encoder.

        Without `return_attention_mask` the masks are left out. `choices` go to the tokenizer.
        """
        indices = [encoder_index or 0] if encoder_index is None or isinstance(encoder_index, int) else encoder_index
        if choices.pop("return_type", "list") != "list":
            raise ModelError("encode_text gives lists here; leave return_type out")
        texts = [text] if isinstance(text, str) else list(text)
        found = _Encoded()
        for index in indices:
            self._encode(texts, server_args, index, choices, found)
        if return_attention_mask:
            return found.embeds, found.masks, found.pooled
        return found.embeds, found.pooled

    def _encode(
        self, texts: list[str], server_args: ServerArgs, index: int, choices: dict[str, Any], found: _Encoded
    ) -> None:
        config = server_args.pipeline_config
        for name in ("text_encoder_configs", "preprocess_text_funcs", "postprocess_text_funcs"):
            if index >= len(given := getattr(config, name)):
                raise ModelError(
                    f"{type(config).__name__}.{name} has {len(given)} entries and text encoder {index + 1} none; "
                    "give one for each"
                )
        extra = config.text_encoder_extra_args[index] if index < len(config.text_encoder_extra_args) else None
        how = self.prepare_tokenizer_kwargs(
            config.text_encoder_configs[index].arch_config.tokenizer_kwargs, **{**(extra or {}), **choices}
        )
        prompts = [config.preprocess_text_funcs[index](each) for each in texts]
        tokens = config.tokenize_prompt(prompts, self.tokenizers[index], how).to(get_local_torch_device())
        with torch.no_grad(), set_forward_context(current_timestep=0):
            made = self.text_encoders[index](
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
            )
        found.embeds.append(config.postprocess_text_funcs[index](made, tokens))
        found.masks.append(tokens["attention_mask"])
        whole = [made[name] for name in ("text_embeds", "pooler_output") if name in made and made[name] is not None]
        found.pooled += whole[:1]

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        found.add_check("prompt", batch.prompt, StageValidators.string_or_list_strings)
        found.add_check("prompt_embeds", batch.prompt_embeds, StageValidators.is_list)
        return found

    def verify_output(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        found.add_check("prompt_embeds", batch.prompt_embeds, StageValidators.list_of_tensors_min_dims(2))
        return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
