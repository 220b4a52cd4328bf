"""A stand-in for the part of vLLM's Python API that `omnimuse/ar/vllm_child.py` calls, without a model.

The next token follows from those before it (`tests/standin_vllm/rule.py`), one a step and `PACE` seconds apart. A
prompt that begins with `CURSED` is refused; one that begins with `DEADLY` ends the process. The file `TOLD` gets a line
for each step and each text that is stopped. Nothing is longer than `MOST`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rule import CURSED, DEADLY, MOST, PACE, next_of

from vllm.sampling_params import SamplingParams

__version__ = "stand-in"


@dataclass
class EngineArgs:
    model: str
    dtype: str
    max_model_len: int
    skip_tokenizer_init: bool
    enforce_eager: bool


@dataclass
class _Text:
    ids: list[int]
    how: SamplingParams
    written: list[int] = field(default_factory=list)


class LLMEngine:
    def __init__(self, args: EngineArgs) -> None:
        config = json.loads((Path(args.model) / "config.json").read_text())
        self.words, self.texts, self.told = int(config["vocab_size"]), dict[str, _Text](), os.environ.get("TOLD", "")

    @staticmethod
    def from_engine_args(args: EngineArgs) -> LLMEngine:
        if args.max_model_len == 2:
            raise ValueError("the stand-in has no room")
        return LLMEngine(args)

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> None:
        ids = prompt["prompt_token_ids"]
        if ids[0] == CURSED:
            raise ValueError("the stand-in does not like it")
        self.texts[request_id] = _Text(list(ids), params)

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._say(f"stopped {len(self.texts.pop(request_id).written)}")

    def has_unfinished_requests(self) -> bool:
        return bool(self.texts)

    def step(self) -> list[Any]:
        time.sleep(PACE)
        self._say(f"together {len(self.texts)}")
        return [self._write(request_id, text) for request_id, text in list(self.texts.items())]

    def _write(self, request_id: str, text: _Text) -> Any:
        if text.ids[0] == DEADLY and len(text.written) == 3:
            os._exit(7)
        token = next_of([*text.ids, *text.written], self.words)
        while token in (text.how.logit_bias or {}):
            token += 1
        text.written.append(token)
        reason = "stop" if token in text.how.stop_token_ids else None
        if reason is None and len(text.written) == min(text.how.max_tokens, MOST):
            reason = "length"
        if reason is not None:
            del self.texts[request_id]
        made = SimpleNamespace(token_ids=[token], finish_reason=reason)
        return SimpleNamespace(request_id=request_id, outputs=[made])

    def _say(self, line: str) -> None:
        if self.told:
            with Path(self.told).open("a") as file:
                file.write(line + "\n")
