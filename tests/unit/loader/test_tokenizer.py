"""The tokenizer without transformers: what transformers' own makes of the same files, or not used at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import omnimuse
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Door
from omnimuse.core.spec import CALLS
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.tokenizer import LibraryTokenizer, PlainTokenizer, suffices
from omnimuse.models import REGISTRY
from tests.checkpoints import qwen3
from tests.checkpoints.calling import LOOK, TEMPLATE
from tests.checkpoints.parts import QWEN_CHAT, qwen_tokenizer

BUNDLED = Path(omnimuse.__file__).parent / "bundled/shapes/tokenizer"

TEXTS = (
    "",
    "a",
    "a red circle on a blue background",
    "  spaces \t and\n\nlines \u00a0 ",
    "schön, Größe, 红色的圆圈, 🟥🔴, e\u0301 and \u00e9",
    "<|im_start|>user\nno<|im_end|> <|endoftext|><think>",
    "a very long story about a square " * 60,
)

MESSAGES = [
    {"role": "system", "content": "Draw <b>well</b> & 'fast'."},
    {"role": "user", "content": "a {{ red }} circle"},
    {"role": "assistant", "content": "done\n"},
]


def save_plain(folder: Path, **more: Any) -> Path:
    """A tokenizer with normalizer and added tokens, saved under the class that takes tokenizer.json as it stands."""
    whole = qwen_tokenizer()
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    plain = PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer, **named, **more)
    plain.chat_template = QWEN_CHAT
    plain.save_pretrained(folder)
    return folder


@pytest.fixture(params=["bundled", "saved by transformers"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    copy = tmp_path / "tokenizer"
    return shutil.copytree(BUNDLED, copy) if request.param == "bundled" else save_plain(copy)


def theirs(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"truncation": True, "max_length": 16},
        {"truncation": True, "max_length": 16, "padding": "max_length"},
        {"truncation": True, "max_length": 512, "padding": False},
        {"truncation": True, "max_length": 1, "padding": "max_length"},
    ],
    ids=str,
)
def test_tokens_are_those_of_transformers_cut_and_filled_up_alike(folder: Path, text: str, how: dict[str, Any]) -> None:
    assert suffices(folder, "PreTrainedTokenizerFast")
    ours = PlainTokenizer(folder)(text, return_tensors="pt", verbose=False, **how).to("cpu")
    reference = theirs(folder)(text, return_tensors="pt", verbose=False, **how)
    assert ours.input_ids.dtype == ours.attention_mask.dtype == torch.int64
    assert torch.equal(ours.input_ids, reference.input_ids.long())  # floats, where there are none
    assert torch.equal(ours.attention_mask, reference.attention_mask.long())


@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": True}, {"enable_thinking": False}], ids=str)
@pytest.mark.parametrize("opened", [True, False])
def test_chats_are_written_as_transformers_writes_them(folder: Path, opened: bool, thinking: dict[str, Any]) -> None:
    how = {"tokenize": False, "add_generation_prompt": opened, **thinking}
    ours = PlainTokenizer(folder).apply_chat_template(MESSAGES, **how)
    assert ours == theirs(folder).apply_chat_template(MESSAGES, **how)
    assert "{{ red }}" in ours


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.content | trim }}{% endfor %}",
        "{{ eos_token }}{{ pad_token }}{{ bos_token }}{% if tools %}T{% endif %}{{ documents is none }}",
        "{% macro say(x) %}[{{ x | upper }}]{% endmacro %}{{ say(messages[0]['role']) }}\n\n",
        "{{ messages | tojson }}{% if not messages %}{{ raise_exception('no') }}{% endif %}",
        "{% set ns = namespace(a=1) %}{% generation %}{{ ns.a }}{% endgeneration %}{{ cycler('a').next() }}",
    ],
)
def test_templates_of_other_kinds_come_out_alike(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    assert suffices(folder, "TokenizersBackend")
    ours = PlainTokenizer(folder).apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert ours == theirs(folder).apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)


def test_a_template_in_the_configuration_counts_unless_there_is_a_file(folder: Path) -> None:
    change(folder, "tokenizer_config.json", {"chat_template": "inside"})
    assert PlainTokenizer(folder).apply_chat_template(MESSAGES) != "inside"
    (folder / "chat_template.jinja").unlink()
    assert suffices(folder, "TokenizersBackend")
    assert PlainTokenizer(folder).apply_chat_template(MESSAGES) == "inside"
    assert theirs(folder).apply_chat_template(MESSAGES, tokenize=False) == "inside"


def change(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def setting(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, "tokenizer_config.json", values)


def content(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, "tokenizer.json", values)


def template(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


ENDING = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}},
}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "special_tokens_map.json").write_text("{}"),
        lambda folder: (folder / "additional_chat_templates").mkdir(),
        setting(padding_side="left"),
        setting(truncation_side="left"),
        setting(add_bos_token=True),
        setting(split_special_tokens=True),
        setting(tokenizer_class="Qwen2Tokenizer"),
        setting(bos_token="<s>"),
        setting(bos_token={"content": "<|im_start|>", "lstrip": True}),
        setting(extra_special_tokens=["<|vision|>"]),
        setting(extra_special_tokens={"vision_token": "<|im_start|>"}),
        setting(chat_template=[{"name": "default", "template": ""}]),
        content(truncation={"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}),
        content(post_processor=ENDING),
        content(added_tokens=[]),
        template("{{ something_else }}"),
        template("{% for %}"),
    ],
)
def test_what_needs_more_is_left_to_transformers(folder: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(folder)
    assert not suffices(folder, "TokenizersBackend")


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "CLIPTokenizer", "T5Tokenizer", "T5TokenizerFast"])
def test_classes_that_rebuild_their_files_are_left_to_transformers(folder: Path, kind: str) -> None:
    assert not suffices(folder, kind)


def test_a_damaged_file_is_refused_with_its_name(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ModelError, match=f"{path} is not valid JSON"):
        suffices(folder, "TokenizersBackend")


def test_a_template_longer_than_any_is_refused(folder: Path) -> None:
    template("x" * (2**20 + 1))(folder)
    with pytest.raises(ModelError, match=r"chat_template.jinja has more than 1 MiB"):
        suffices(folder, "TokenizersBackend")


def test_a_chat_or_pads_without_what_they_need_are_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    setting(pad_token=None)(folder)
    tokenizer = PlainTokenizer(folder)
    with pytest.raises(ModelError, match=r"has no chat_template.jinja and no chat_template"):
        tokenizer.apply_chat_template(MESSAGES)
    with pytest.raises(ModelError, match="names no pad_token"):
        tokenizer("a", padding="max_length", max_length=8)
    assert tokenizer("a", padding="max_length", max_length=1).input_ids.shape == (1, 1)


def test_templates_cannot_reach_python(folder: Path) -> None:
    template("{{ messages.__class__.__mro__[1].__subclasses__() }}")(folder)
    with pytest.raises(ModelError, match="SecurityError"):
        PlainTokenizer(folder).apply_chat_template(MESSAGES)


@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": False}], ids=str)
@pytest.mark.parametrize(
    "source",
    [
        QWEN_CHAT,
        "{% set ns = namespace(a=1) %}{{ messages | tojson }}{{ eos_token }}{{ strftime_now('%Y') }}{{ ns.a }}",
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}",
    ],
)
def test_a_tokenizer_of_transformers_writes_chats_as_they_are_written_there(
    folder: Path, source: str, thinking: dict[str, Any]
) -> None:
    (folder / "chat_template.jinja").write_text(source)
    ours = LibraryTokenizer(theirs(folder), folder)
    how = {"add_generation_prompt": True, **thinking}
    assert ours.apply_chat_template(MESSAGES, **how) == theirs(folder).apply_chat_template(
        MESSAGES, tokenize=False, **how
    )
    assert torch.equal(ours("a red circle").input_ids, theirs(folder)("a red circle", return_tensors="pt").input_ids)


def test_the_pad_of_a_tokenizer_of_transformers_is_the_checkpoints_or_refused(folder: Path) -> None:
    inner = theirs(folder)
    assert LibraryTokenizer(inner, folder).pad == inner.convert_tokens_to_ids(inner.pad_token)
    inner.pad_token = None
    with pytest.raises(ModelError, match="names no pad_token"):
        assert LibraryTokenizer(inner, folder).pad


@pytest.mark.costly
def test_a_chat_that_a_tokenizer_of_transformers_would_write_for_ever_is_ended(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "tokenizer")
    template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")(folder)
    endless = LibraryTokenizer(theirs(folder), folder)
    with pytest.raises(ModelError, match=r"takes more than 5 s"):
        endless.apply_chat_template(MESSAGES)


@pytest.mark.parametrize("tools", [None, [LOOK], [LOOK, LOOK]])
def test_tools_and_calls_are_told_as_by_the_library(folder: Path, tools: Any) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    call = {"id": "a", "type": "function", "function": {"name": "look_up", "arguments": {"word": "h\u00e9ron <b>"}}}
    talk: list[Any] = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [call]}]
    talk.append({"role": "tool", "tool_call_id": "a", "content": "a bird"})
    ours = PlainTokenizer(folder).apply_chat_template(talk, tools=tools, add_generation_prompt=True)
    how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    assert ours == theirs(folder).apply_chat_template(talk, tools=tools, **how)
    assert ("<tools>" in ours) is bool(tools)


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        (TEMPLATE, True),
        ("{{ tools }} but no mark", False),
        ("{% set tools = 1 %}{{ tools }} <tool_call>", False),
        ("{{ tools }} <tool_call><function=f>", False),
        ("{{ tools }} <tool_call> {% for %}", False),
    ],
)
def test_whether_a_template_tells_of_tools_is_known_before_anything_is_loaded(
    tmp_path: Path, template: str, calls: bool
) -> None:
    folder = qwen3.build(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(template)
    assert (CALLS in Checkpoint(folder).configs) is calls
    spec = REGISTRY.spec("Qwen3ForCausalLM")
    assert Door.of(spec, Checkpoint(folder).configs, "tiny").limits.calls is calls
