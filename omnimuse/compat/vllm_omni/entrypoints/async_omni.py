"""`vllm_omni.entrypoints.async_omni`: the same for asyncio programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Unpack

from omnimuse import api
from omnimuse.compat.vllm_omni.entrypoints.options import EngineOptions, config_of, params_of, prompt_of
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams, OmniPromptType
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.output import Done


class AsyncOmni:
    """An engine for one model, for programs that serve."""

    def __init__(self, model: str, **options: Unpack[EngineOptions]) -> None:
        self._ours = api.AsyncOmni(model, config=config_of(model, options))

    async def generate(
        self, prompt: OmniPromptType, sampling_params: OmniDiffusionSamplingParams | None = None
    ) -> AsyncIterator[OmniRequestOutput]:
        """The output of one prompt, once it is finished; errors are raised. Leaving the iterator early cancels it."""
        params = params_of(sampling_params, self._ours.engine.door.spec)
        async for event in self._ours.generate(prompt_of(prompt), params):
            if isinstance(event, Done):
                yield OmniRequestOutput(event.result)

    async def shutdown(self) -> None:
        """Free the weights."""
        await self._ours.close()
