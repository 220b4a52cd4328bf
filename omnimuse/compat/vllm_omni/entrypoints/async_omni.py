"""`vllm_omni.entrypoints.async_omni`: the same for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

from omnimuse import api
from omnimuse.compat.vllm_omni.entrypoints.choosing import Given, Sampled
from omnimuse.compat.vllm_omni.entrypoints.options import EngineOptions, config_of
from omnimuse.compat.vllm_omni.entrypoints.stages import Stages
from omnimuse.compat.vllm_omni.inputs.data import OmniPromptType
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.ask import Ask
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Chunk, Done, Result
from omnimuse.core.params import DiffusionParams


class AsyncOmni:
    """An engine for one model, for programs that serve."""

    def __init__(self, model: str, **options: Unpack[EngineOptions]) -> None:
        self._ours = api.AsyncOmni(model, config=config_of(model, options))
        self._stages = Stages.of(self._ours.config)
        self.default_sampling_params_list: list[Sampled] = list(self._stages.usual)
        self._making: dict[str, set[asyncio.Future[Result]]] = {}

    async def generate(
        self,
        prompt: OmniPromptType,
        sampling_params: Given | str = None,
        request_id: str = "",
        *,
        sampling_params_list: Given = None,
        output_modalities: Sequence[str] | None = None,
        priority: int = 0,
    ) -> AsyncIterator[OmniRequestOutput]:
        """The outputs of one prompt, as `Omni` has them, once it is finished; errors are raised. Of a model that writes
        or speaks others come before, that are not `finished`: each has what came until then, so that one who is slow
        gets fewer and misses nothing. Leaving the iterator early cancels it, and so does `abort`, by the `request_id`
        that its outputs have, too.

        `output_modalities` are the media that are wanted; a lower `priority` comes first.
        """
        if isinstance(sampling_params, str):
            why = "stands where sampling parameters do; write request_id=..."
            raise RequestError(f"the request_id {sampling_params!r:.80} {why}", "request_id")
        given = sampling_params if sampling_params is not None else sampling_params_list
        asked, params = self._stages.asked(prompt, given, wanted=output_modalities)
        pieces = asyncio.Queue[Chunk | None]()
        ask = Ask("", priority=-priority, chunks=self._stages.several)
        making = asyncio.ensure_future(self._made(asked, params, ask, pieces.put_nowait))
        making.add_done_callback(lambda _: pieces.put_nowait(None))
        self._making.setdefault(request_id, set()).add(making)
        so_far = self._stages.so_far(request_id, asked, params)
        try:
            ended = False
            while not ended:
                came, told = [await pieces.get()], dict[str, OmniRequestOutput]()
                while not pieces.empty():
                    came.append(pieces.get_nowait())
                for piece in came:
                    if piece is None:
                        ended = True
                    else:
                        told[piece.medium] = so_far.add(piece)
                for each in told.values():
                    yield each
        finally:
            making.cancel()
            self._making[request_id].remove(making)
            if not self._making[request_id]:
                del self._making[request_id]
        if making.cancelled():
            return
        result = making.result()
        for made in self._stages.outputs(replace(result, request_id=request_id or result.request_id)):
            yield made

    async def _made(self, prompt: Any, params: DiffusionParams, ask: Ask, listen: Callable[[Chunk], None]) -> Result:
        """What comes at the end, and `listen` is told every piece before; cancelling this cancels the request."""
        async for event in self._ours.generate(prompt, params, ask=ask):
            if isinstance(event, Chunk):
                listen(event)
        assert isinstance(event, Done)
        return event.result

    async def abort(self, request_id: str | Sequence[str]) -> None:
        """Cancel what was asked for under this id, or these: its iterator ends. One that is not known is none."""
        for each in [request_id] if isinstance(request_id, str) else request_id:
            for making in self._making.get(each, ()):
                making.cancel()

    async def shutdown(self) -> None:
        """Free the weights."""
        await self._ours.close()
