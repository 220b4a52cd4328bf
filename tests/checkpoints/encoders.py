"""Tiny random text encoders of the kinds that many families have, and their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.checkpoints import parts

POOLED_WIDTH = 32
PAD = "<|endoftext|>"
TEXT_WIDTH = 24
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-"


def clip_tokenizer() -> CLIPTokenizer:
    """Lower case, words that end in `</w>`, 77 tokens; `<|endoftext|>` also pads and has the highest id."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>")
    trained.train_from_iterator([parts.PROMPT_WORDS], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer(longest: int = 512) -> T5Tokenizer:
    """One piece per word of the prompts, letters for all others, `<unk>` for what is left; `longest` tokens."""
    words = dict.fromkeys(parts.PROMPT_WORDS.split())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -6.0) for word in words] + [(letter, -8.0) for letter in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=longest)


def clip_encoder(vocabulary: int) -> CLIPTextModel:
    """As published: an end token of 2 that no vocabulary has, so the highest id of a prompt is taken for its end."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=POOLED_WIDTH,
        intermediate_size=2 * POOLED_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def t5_encoder(vocabulary: int, width: int = TEXT_WIDTH) -> T5EncoderModel:
    """An encoder as T5 v1.1 has it: gated GELU, no tied head."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def umt5_encoder(vocabulary: int) -> UMT5EncoderModel:
    """Gated GELU, relative positions in every layer."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=32,
    )
    return UMT5EncoderModel(config)


def gemma_tokenizer() -> GemmaTokenizer:
    """One token a byte or letter, after one that begins every text; pads on the left."""
    letters = [*LETTERS, "▁", ".", ","]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return GemmaTokenizer(vocab=vocab, merges=[], model_max_length=512, add_bos_token=True)


def gemma2_encoder() -> Gemma2Model:
    """For that tokenizer: two heads of 12, which share keys."""
    config = Gemma2Config(
        vocab_size=len(gemma_tokenizer()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=1024,
        sliding_window=64,
        query_pre_attn_scalar=12,
    )
    return Gemma2Model(config)


def bpe_tokenizer(marks: Sequence[str] = ("<|startoftext|>",)) -> PreTrainedTokenizerFast:
    """Bytes and words, in every text after `marks`, so that none is empty; pads on the left."""
    vocab, merges = parts.train_bpe([parts.PROMPT_WORDS], parts.QWEN_SPLIT)
    numbered = {token: number for number, token in enumerate([*vocab, *marks, PAD])}
    trained = Tokenizer(models.BPE(vocab=numbered, merges=merges))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.add_special_tokens([*marks, PAD])
    begun = [(mark, numbered[mark]) for mark in marks]
    trained.post_processor = processors.TemplateProcessing(single=[*marks, "$A"], special_tokens=begun)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token=PAD, eos_token=PAD, padding_side="left", model_max_length=1024
    )


def language_model(kind: type[PreTrainedModel], tokenizer: PreTrainedTokenizerFast, width: int) -> PreTrainedModel:
    """A text encoder that is a language model of any kind with grouped heads: three layers, two heads of 16, which
    share keys.
    """
    config = kind.config_class(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return kind(config)
