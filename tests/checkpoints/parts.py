"""Parts that tiny random checkpoints share: tokenizers, random weights, VAEs, text encoders, the index file.

Used by one module per family beside this one; never by the product. Random numbers depend on (seed, component, name)
alone, so adding a component changes no other.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from omnimuse.loader.components import quiet
from omnimuse.loader.rules import Rule, apply_rules
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise

M = TypeVar("M", bound=nn.Module)

PROMPT_WORDS = "a red circle above the blue square on white, left of two green stars; small yellow heart below it."
"""Text whose words are single tokens beside those of the template; all other words fall apart into bytes."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


IN_BLOCKS = re.compile(r"(.*\.)?\w*((layers|blocks)\.|(refiner|block)\.\d).*\.weight|layers\.weight")
TABLES = ("relative_attention_bias.weight",)
"""What T5 has in its blocks that is no layer."""


def packable(name: str, tensor: Tensor) -> bool:
    """Whether this is what packers pack: the weights of a linear layer in a block that repeats."""
    return tensor.ndim == 2 and IN_BLOCKS.match(name) is not None and not name.endswith(TABLES)


def weights_of(component: Path) -> Path:
    """The one file of weights of a component, which is a folder, or that file."""
    [file] = component.glob("*.safetensors") if component.is_dir() else [component]
    return file


def say_packed(file: Path, said: Mapping[str, Any]) -> None:
    """Have the configuration beside `file` say how its weights are packed."""
    config = file.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": dict(said)}))


def unfilled(make: Callable[[], M]) -> M:
    """`make()` on the CPU, where libraries compute what they keep beside weights; its weights are to be redrawn."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        return make()


def filled(component: str, seed: int, module: nn.Module) -> nn.Module:
    """`module` with every parameter and stored buffer redrawn; float32, eval."""
    randomise(module, seed, component, DtypePolicy(torch.float32), "cpu")
    return module


def translated(weights: dict[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names, as `rules` say."""
    ours: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        target = apply_rules(name, rules)
        if target.fuse is None:
            ours[target.name] = tensor
        else:
            fused.setdefault(target.name, {})[target.part] = tensor
    return ours | {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in fused.items()}


def save_module(folder: Path, component: str, seed: int, make: Any) -> None:
    """Builds `make()`, redraws it and saves it as `folder/component`."""
    with quiet("diffusers"), quiet("transformers"):
        module: Any = filled(component, seed, unfilled(make))
        module.save_pretrained(folder / component)


def train_bpe(texts: Sequence[str], split: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE trained until every word of `texts` is one token: (vocabulary, merges)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def qwen_tokenizer(template: str = QWEN_CHAT, texts: Sequence[str] = ()) -> Qwen2Tokenizer:
    """A tokenizer as the Qwen text encoders have it: chat template, padding, one token per template word."""
    words = "system\nuser\nassistant\n\n<think>\n\n</think>\n\n"
    vocab, merges = train_bpe([words, PROMPT_WORDS, *texts], QWEN_SPLIT)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=None,
        bos_token=None,
        eos_token=QWEN_SPECIALS[2],
        pad_token=QWEN_SPECIALS[0],
        additional_special_tokens=[QWEN_SPECIALS[1]],
        padding_side="right",
        model_max_length=1024,
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


def qwen3_encoder(vocabulary: int, width: int = 64, layers: int = 3) -> Qwen3Model:
    """A text encoder of the Qwen3 kind: 4 query and 2 key heads of 16."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    return Qwen3Model(config)


def qwen25_vl(vocabulary: int, width: int = 64, layers: int = 3, media: Sequence[int] = (3, 4, 5, 6)) -> nn.Module:
    """A language model of the Qwen2.5-VL kind that reads pictures: 4 query and 2 key heads of 16, two vision blocks.

    `media` are the ids of the tokens for where a picture starts and ends, for a piece of one, and of a video.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    start, end, image, video = media
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": width,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    tokens = {"vision_start_token_id": start, "vision_end_token_id": end}
    places = {"image_token_id": image, "video_token_id": video}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens, **places)
    )


def kl_autoencoder(latent_channels: int = 16, widths: Sequence[int] = (16, 32, 32, 32)) -> AutoencoderKL:
    """A VAE as FLUX, Z-Image and their kin have it: factor 2 ** (len(widths) - 1), no quant convolutions."""
    levels = len(widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def dc_autoencoder() -> AutoencoderDC:
    """Factor 32: six levels, 8 latent channels."""
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        encoder_block_out_channels=(8, 8, 8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8, 8, 8),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 5 + ((5,),),
        decoder_qkv_multiscales=((),) * 5 + ((5,),),
        scaling_factor=0.41407,
    )


def write_scheduler(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    """`folder/scheduler` of class `kind` with the class's own defaults, changed by `config`."""
    with quiet("diffusers"):
        getattr(diffusers, kind)(**config).save_pretrained(folder / "scheduler")


def write_index(
    folder: Path,
    arch: str,
    components: Mapping[str, tuple[str, str] | None],
    options: Mapping[str, Any] | None = None,
) -> None:
    """`model_index.json`: the pipeline's class, (library, class) per component or None, and other entries."""
    entries = {name: list(value) if value else [None, None] for name, value in components.items()}
    index = {"_class_name": arch, "_diffusers_version": diffusers.__version__, **entries, **(options or {})}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def with_scheduler(folder: Path, changed: Path, build: Callable[[Any], Any]) -> Path:
    """A copy of the checkpoint in `folder` with the scheduler that `build` makes of its own."""
    shutil.copytree(folder, changed)
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scheduler = build(getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler"))
    scheduler.save_pretrained(changed / "scheduler")
    index = json.loads((changed / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (changed / "model_index.json").write_text(json.dumps(index))
    return changed


def assert_drawn_everywhere(folder: Path) -> None:
    """No tensor of the checkpoint there is left at zero or one, or undrawn."""
    for path in folder.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), name
            assert tensor.unique().numel() > min(3, tensor.numel() - 1), name
