"""What has come of a prompt of a model that writes or speaks, while it is made: outputs that are not finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from omnimuse.compat.vllm_omni.outputs import CompletionOutput, OmniRequestOutput, RequestOutput
from omnimuse.core.output import Chunk, Result


@dataclass
class SoFar:
    """The pieces that have come of a request whose finished `result` is still empty. What is told has all that came
    before it, too: a text is one text with all its tokens, of a sound it is a list of its pieces.
    """

    result: Result
    made: Callable[[str], int]
    rate: int
    _media: dict[str, dict[int, CompletionOutput]] = field(default_factory=dict)

    def add(self, piece: Chunk) -> OmniRequestOutput:
        """The output of the stage that made `piece`, with that."""
        outputs = self._media.setdefault(piece.medium, {})
        before = outputs.get(piece.output) or CompletionOutput(piece.output, "", (), None, {})
        text, came, tokens = before.text, before.multimodal_output, (*before.token_ids, *piece.tokens)
        if piece.medium == "text":
            text += piece.data
        else:
            wave = torch.from_numpy(piece.data)
            pieces = [*came.get("audio", ()), wave[0] if len(wave) == 1 else wave]
            came = {"audio": pieces, "sr": self.rate}
        outputs[piece.output] = CompletionOutput(piece.output, text, tokens, None, came)
        found = [outputs[index] for index in sorted(outputs)]
        told = RequestOutput(self.result.request_id, self.result.prompt, found, [], finished=False)
        return OmniRequestOutput(self.result, self.made(piece.medium), piece.medium, told)
