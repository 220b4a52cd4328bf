"""`vllm_omni.entrypoints.async_omni`: the same for asyncio programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Unpack

from omnimuse import api
from omnimuse.compat.vllm_omni.entrypoints.options import EngineOptions, config_of
from omnimuse.compat.vllm_omni.entrypoints.stages import Sampling, Stages
from omnimuse.compat.vllm_omni.inputs.data import OmniPromptType
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.output import Done


class AsyncOmni:
    """An engine for one model, for programs that serve."""

    def __init__(self, model: str, **options: Unpack[EngineOptions]) -> None:
        self._ours = api.AsyncOmni(model, config=config_of(model, options))
        self._stages = Stages.of(self._ours.config)

    async def generate(
        self,
        prompt: OmniPromptType,
        sampling_params: Sampling = None,
        *,
        sampling_params_list: Sampling = None,
    ) -> AsyncIterator[OmniRequestOutput]:
        """The outputs of one prompt, as `Omni` has them, once it is finished; errors are raised. Leaving the iterator
        early cancels it.
        """
        given = sampling_params if sampling_params is not None else sampling_params_list
        asked, params = self._stages.asked(prompt, given)
        async for event in self._ours.generate(asked, params):
            if isinstance(event, Done):
                for made in self._stages.outputs(event.result):
                    yield made

    async def shutdown(self) -> None:
        """Free the weights."""
        await self._ours.close()
