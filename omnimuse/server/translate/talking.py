"""The fields of requests to a model that writes: chats, and completions of a text. Read with `fields.py`'s table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnimuse.core.messages import MAX_WRITTEN
from omnimuse.server.translate.field import (
    ADAPTERS,
    BLOCKS,
    DEADLINE,
    HARMLESS,
    MAX_OUTPUTS,
    MAX_WORD,
    MODEL,
    STEP_CACHE,
    TIMEOUT,
    Field,
    refused,
)

MAX_STOPS = 16
"""Texts that may end an answer; OpenAI has four."""


@dataclass(frozen=True)
class Talk:
    """What a chat has besides: the messages, the media that its client knows, and how a spoken answer sounds; the tools
    that it may ask for, the choice among them and whether it is a `single` one at a time; and the language of a sound
    that is written down.
    """

    messages: list[Any] | None = None
    modalities: list[Any] | None = None
    audio: Mapping[str, Any] | None = None
    tongue: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    single: bool = False

    @staticmethod
    def of(values: Mapping[str, Any]) -> Talk:
        """What values by their targets say of it."""
        single = values.get("parallel_tool_calls") is False
        names = ("messages", "modalities", "audio", "tongue", "tools", "tool_choice")
        return Talk(**{name: values.get(name) for name in names}, single=single)


_ABUSE = "names an end user for abuse monitoring; this server does none and keeps none"
_SAMPLED = "it is not computed here; `temperature`, `top_k`, `top_p` and `repetition_penalty` say how tokens are drawn"
_NO_SCORES = "how likely tokens were is not told"
_STORED = "conversations are not stored"
_TEMPLATE = "the checkpoint's own chat template is used, as it stands"

_WRITING: tuple[Field, ...] = (
    MODEL,
    Field("seed", "seed", "seed", "answer i uses seed + i; chosen at random when absent or -1"),
    Field("n", "whole", "num_outputs_per_prompt", "how many answers", low=1, high=MAX_OUTPUTS),
    Field("stream", "flag", "stream", "answer with server-sent events, word by word"),
    Field("stream_options", "object", "stream_options", "include_usage adds a last chunk with the usage"),
    Field("max_tokens", "whole", "max_tokens", "of an answer, at most; without it, as many as the model reads", low=1),
    Field("min_tokens", "whole", "min_tokens", "of an answer, before the model may end it by itself (VO)", low=0),
    Field("temperature", "real", "temperature", "0: the likeliest token every time", low=0, high=100),
    Field("top_p", "real", "top_p", "draw from the tokens that make up so much", low=0, high=1),
    Field("top_k", "whole", "top_k", "draw from so many tokens; 0 and -1: from all (VO, SG)", low=-1),
    Field(
        "repetition_penalty", "real", "repetition_penalty", "above 1: say less often what was said (VO, SG)", low=0.01
    ),
    Field("stop", "texts", "stop", "texts that end the answer and are no part of it", longest=MAX_WORD, high=MAX_STOPS),
    TIMEOUT,
    DEADLINE,
    BLOCKS,
    Field("extra_body", "object", "nested", "more fields of this table in an object (VO, with curl)"),
    Field("user", "text", HARMLESS, _ABUSE, longest=MAX_WORD),
    Field("safety_identifier", "text", HARMLESS, _ABUSE, longest=MAX_WORD),
    Field("prompt_cache_key", "text", HARMLESS, "a hint for speed that never changes an answer", longest=MAX_WORD),
    Field("service_tier", "choice", HARMLESS, "there is one tier", allowed=("auto", "default")),
    *refused(_SAMPLED, "frequency_penalty", "presence_penalty", "min_p", neutral=(0,)),
    *refused(_SAMPLED, "typical_p", "length_penalty", "best_of", neutral=(1,)),
    *refused(_SAMPLED, "use_beam_search", "logit_bias", "ignore_eos", "allowed_token_ids", "bad_words"),
    *refused("name the text that ends an answer with `stop`", "stop_token_ids"),
    *refused("a stop is no part of the answer", "include_stop_str_in_output"),
    *refused("what a tokenizer marks as special is no part of a text", "skip_special_tokens", neutral=(True,)),
    *refused("the whole prompt is read", "truncate_prompt_tokens"),
    *refused("tokens are not told", "return_token_ids", "return_tokens_as_token_ids"),
    *refused("a text has no scheme that it keeps to", "structured_outputs", "guided_json", "guided_regex"),
    *refused("a text has no scheme that it keeps to", "guided_choice", "guided_grammar", "response_format",
             neutral=({"type": "text"},)),
    *ADAPTERS,
)  # fmt: skip
"""What both know."""

TALK: tuple[Field, ...] = (
    *_WRITING,
    Field("messages", "list", "messages", "the conversation, which the model goes on with"),
    Field("max_completion_tokens", "whole", "max_tokens", "as `max_tokens`, by OpenAI's newer name", low=1),
    Field(
        "modalities",
        "list",
        "modalities",
        '["text"]; with "audio" of a model that speaks, or "image" of one that draws',
    ),
    Field("size", "size", "size", "of the picture that comes with an answer, of a model that draws (ours)"),
    Field("num_inference_steps", "whole", "num_inference_steps", "denoising steps of that picture (ours)"),
    Field("guidance_scale", "real", "guidance_scale", "how strongly its prompt steers that picture (ours)"),
    Field("partial_images", "whole", "partial_images", "looks at that picture, in a stream (ours)", low=0, high=3),
    *STEP_CACHE,
    Field("audio", "object", "audio", 'how an answer sounds: {"voice": ..., "format": "wav"}; in a stream "pcm16"'),
    Field(
        "use_audio_in_video",
        "flag",
        "use_audio_in_video",
        "a sound right behind a video in a message is that video's own, of a model that hears it meanwhile (ours)",
    ),
    Field("mm_processor_kwargs", "object", "nested", '{"use_audio_in_video": true}, as that (VO)'),
    Field(
        "tools", "list", "tools", "functions that the answer may ask for, of a model whose chat template tells of them"
    ),
    Field("tool_choice", "any", "tool_choice", "auto, none, required, or the function that the answer must ask for"),
    Field("parallel_tool_calls", "flag", "parallel_tool_calls", "false: only the first call of an answer is told"),
    *refused(_NO_SCORES, "logprobs"),
    *refused(_NO_SCORES, "top_logprobs", neutral=(0,)),
    *refused("it is called `tools` today", "functions"),
    *refused("it is called `tool_choice` today", "function_call", neutral=("none", "auto")),
    *refused(_TEMPLATE, "chat_template", "chat_template_kwargs", "documents"),
    *refused(_TEMPLATE, "add_generation_prompt", neutral=(True,)),
    *refused(_TEMPLATE, "continue_final_message", "add_special_tokens", "echo"),
    *refused("the model thinks as it was taught to", "reasoning_effort", "verbosity", neutral=("medium",)),
    *refused("what is foreseen is not made use of", "prediction"),
    *refused(
        "say how the text is written with fields of this request; a talker talks as its checkpoint has it",
        "sampling_params_list",
    ),
    *refused(_STORED, "store", "metadata"),
    *refused("this model searches nothing", "web_search_options"),
)
"""/v1/chat/completions."""

COMPLETION: tuple[Field, ...] = (
    *_WRITING,
    Field("prompt", "one", "prompt", "the text that the model goes on with", longest=MAX_WRITTEN),
    *refused("the answer is what comes after the prompt", "echo", "suffix"),
    *refused(_NO_SCORES, "logprobs"),
    *refused(_NO_SCORES, "prompt_logprobs"),
    *refused("no step of a text can be skipped", "cache"),
)
"""/v1/completions."""
