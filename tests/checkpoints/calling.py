"""A tiny language model that says what it is told to, whatever it reads: for answers that ask for tools.

Every piece of what it says is a token of its own, and all that its network does is to find the token that follows the
last one. After the answer of a tool, its template has a token of its own, behind which it says something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from omnimuse.core.calls import FORCED as FORCED_CALL
from tests.checkpoints import conversations, qwen3

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
{{- '<|im_start|>' + message.role + '\\n' }}CONTENT
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
""".replace("CONTENT", conversations.CONTENT)
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
    """Writes a Qwen3 into `folder` and returns it: it says `asks`, and `knows` when a tool has answered."""
    qwen3.build(folder)
    tokens, chain = _told(folder, asks, knows)
    (folder / "chat_template.jinja").write_text(template)
    return _says(folder, chain, tokens, "model.", "lm_head.", ())


def with_tools(folder: Path, build: Callable[[Path], Path]) -> Path:
    """What `build` writes, whose template tells of tools."""
    build(folder)
    apart = (folder / "chat_template.json").exists()
    (folder / ("chat_template.json" if apart else "chat_template.jinja")).write_text(
        json.dumps({"chat_template": TEMPLATE}) if apart else TEMPLATE
    )
    return folder


def build_thinking(folder: Path, build: Callable[[Path], Path]) -> Path:
    """The same of a model that thinks and talks, which `build` writes: its thinker says that."""
    build(folder)
    tokens, chain = _told(folder, ASKS, KNOWS)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return _says(folder, chain, tokens, "thinker.model.", "thinker.lm_head.", ("thinker_config", "text_config"))


Chain = Sequence[tuple[int, int]]


def _told(folder: Path, asks: Sequence[str], knows: Sequence[str]) -> tuple[int, Chain]:
    """Gives the tokenizer the pieces of what is said; how many tokens it has then, and which of them follow which."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([BEGINS, HEARD, *asks, *knows, MEANS])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    ids, end = tokenizer.convert_tokens_to_ids, "<|im_end|>"
    pairs = [*zip((BEGINS, *asks), (*asks, end), strict=True), *zip((HEARD, *knows), (*knows, end), strict=True)]
    chain = [(ids(a), ids(b)) for a, b in (*pairs, (MEANS, end))]
    chain.append((tokenizer(FORCED).input_ids[-1], ids(MEANS)))
    assert len(dict(chain)) == len(chain), "every piece is said once"
    return len(tokenizer), chain


def _says(folder: Path, chain: Chain, tokens: int, model: str, head: str, config: Sequence[str]) -> Path:
    """Gives the network the weights with which the second token of each pair follows the first: those below `model`,
    and the `head`; `config` is where config.json has its vocabulary.
    """
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if name.startswith(f"{model}layers.") and ("o_proj" in name or "down_proj" in name):
            value.zero_()
    width = weights[f"{model}norm.weight"].numel()
    assert len(chain) <= width
    embedded, said = (torch.zeros(tokens, width) for _ in range(2))
    for place, (before, after) in enumerate(chain):
        embedded[before, place] = 1
        said[after, place] = 100
    told = {"embed_tokens.weight": embedded, "norm.weight": torch.ones(width)}
    weights |= {f"{model}{name}": value for name, value in told.items()} | {f"{head}weight": said}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    whole = part = json.loads((folder / "config.json").read_text())
    for name in config:
        part = part[name]
    part["vocab_size"] = tokens
    (folder / "config.json").write_text(json.dumps(whole))
    return folder
