"""An answer that is spoken and asks for a tool: what is said ends where the call begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from omnimuse import Omni
from omnimuse.core.calls import OPEN
from omnimuse.core.output import Result
from tests.checkpoints import qwen3_omni
from tests.checkpoints.calling import LOOK

TALK = {"messages": [{"role": "user", "content": "a red circle"}], "tools": [LOOK]}
AT = 2
"""Which token of the answer begins a call."""


def answered(folder: Path, **choices: Any) -> Result:
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        asked: Any = {"temperature": 0, "modalities": ("text", "audio"), "seed": 3, **choices}
        [result] = omni.generate(TALK, progress=False, **asked)
    return result


def test_a_call_is_for_no_ears(tmp_path: Path) -> None:
    folder = qwen3_omni.build(tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        file.write_text(file.read_text().replace("<think>", OPEN))
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    told = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{# <tool_call> #}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": told + template}))
    before = answered(folder, max_tokens=AT + 1)
    tokens = before.written[0].tokens
    assert len(tokens) == AT + 1 and tokens[AT] not in tokens[:AT]

    [made] = [token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
              if token["content"] == OPEN]  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    for name in ("thinker.model.embed_tokens.weight", "thinker.lm_head.weight"):
        weights[name][[made, tokens[AT]]] = weights[name][[tokens[AT], made]]  # it says this token instead
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    after = answered(folder, max_tokens=AT + 8)
    assert after.written[0].tokens[: AT + 1] == (*tokens[:AT], made)
    assert OPEN in after.text, "it is no whole call, and so it is text"
    np.testing.assert_allclose(after.audios[0].samples, before.audios[0].samples, atol=1e-6)
