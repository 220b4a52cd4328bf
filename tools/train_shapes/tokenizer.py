"""The demo model's tokenizer: byte-level BPE of about 600 entries, chat template of the Qwen form."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.train_shapes.captions import caption
from tools.train_shapes.data import draw_scene

ENTRIES = 640
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
# So that chat markup and everyday words are short too.
MARKUP = ("user\n", "assistant\n", "system\n", "<think>\n\n</think>\n\n") * 400


def _texts(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield caption(draw_scene(rng), rng)
    yield from MARKUP


def train_tokenizer(count: int = 20_000, seed: int = 5) -> PreTrainedTokenizerFast:
    """A tokenizer trained on ``count`` captions, the same one every time."""
    return tokenizer_of(_texts(count, seed), ENTRIES, SPECIAL)


def tokenizer_of(texts: Iterator[str], entries: int, special: Sequence[str]) -> PreTrainedTokenizerFast:
    """One of at most ``entries``, every byte among them, trained on ``texts``; of the ``special`` ones the first pads
    and the third ends.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=[token for token in special if token not in (special[0], special[2])],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="right",
    )


def load_or_train(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in ``folder``; trained and saved there if there is none."""
    if not (folder / "tokenizer.json").exists():
        train_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


class CaptionEncoder:
    """Captions to padded token ids, as ZImagePipeline would make them; remembers what it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        before, after = self.wrap("\0").split("\0")
        self._before = tokenizer(before, add_special_tokens=False).input_ids
        self._after = tokenizer(after, add_special_tokens=False).input_ids
        self._seen: dict[str, list[int]] = {}

    def wrap(self, text: str) -> str:
        """``text`` in the chat template, as the pipeline applies it."""
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of the wrapped ``text``; the special tokens keep its two sides apart."""
        if text not in self._seen:
            if len(self._seen) > 500_000:
                self._seen.clear()
            self._seen[text] = self._tokenizer(self.wrap(text), add_special_tokens=False).input_ids
        return self._seen[text]

    def batch(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids int64 [n, length], mask bool [n, length]); texts longer than ``length`` are an error."""
        rows = [self.ids(text) for text in texts]
        longest = max(len(row) for row in rows)
        if longest > length:
            raise ValueError(f"a caption has {longest} tokens; the bucket takes {length}: use a longer bucket")
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length) < lengths[:, None]
