"""A tiny Qwen3 language model that says what it is told to, whatever it reads: for answers that ask for tools.

Every piece of what it says is a token of its own, and all that its network does is to find the token that follows the
last one. After the answer of a tool, its template has a token of its own, behind which it says something else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from omnimuse.core.calls import FORCED as FORCED_CALL
from tests.checkpoints import qwen3

BEGINS, HEARD = "<|begins|>", "<|heard|>"
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{{- '<|heard|>' if messages[-1].role == 'tool' else '<|begins|>' }}
{%- endif %}
"""
LOOK = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "what a word means",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
"""A tool that what it says asks for."""
ASKS = (
    *("Let me ", "see.", "\n", "<tool", '_call>\n{"na', 'me": "look', '_up", "argu', 'ments": {"word":', ' "heron'),
    *('"}}\n</to', "ol_call>", "\n<tool_call>", '{"name": "count"', ', "arguments": {"upto": 3}}', "</tool_call>\n"),
)
"""A text, and two calls."""
KNOWS = ("A heron", " is a bird", ".")
FORCED, MEANS = FORCED_CALL + 'look_up", "arguments":', ' {"word": "stork"}}\n</tool_call>'
"""What an answer has begun with that must ask for `LOOK`, and what it says then."""


def build(folder: Path, asks: Sequence[str] = ASKS, knows: Sequence[str] = KNOWS, template: str = TEMPLATE) -> Path:
    """Writes the checkpoint into `folder` and returns it: it says `asks`, and `knows` when a tool has answered."""
    qwen3.build(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([BEGINS, HEARD, *asks, *knows, MEANS])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token
    pairs = [*zip((BEGINS, *asks), (*asks, end), strict=True), *zip((HEARD, *knows), (*knows, end), strict=True)]
    ids = tokenizer.convert_tokens_to_ids
    chain = [(ids(a), ids(b)) for a, b in (*pairs, (MEANS, end))]
    chain.append((tokenizer(FORCED).input_ids[-1], ids(MEANS)))
    assert len(dict(chain)) == len(chain) <= qwen3.WIDTH, "every piece is said once"
    save_file(_chained(folder, len(tokenizer), chain), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _chained(folder: Path, tokens: int, pairs: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """The weights with which the second token of each pair follows the first."""
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()
    embedded, said = (torch.zeros(tokens, qwen3.WIDTH) for _ in range(2))
    for place, (before, after) in enumerate(pairs):
        embedded[before, place] = 1
        said[after, place] = 100
    norm = torch.ones(qwen3.WIDTH)
    return {**weights, "model.embed_tokens.weight": embedded, "lm_head.weight": said, "model.norm.weight": norm}
