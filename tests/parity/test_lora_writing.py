"""What is written with an adapter that PEFT has made is what PEFT and transformers write with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.loader.components import quiet
from tests.checkpoints import library_text, qwen3
from tests.checkpoints.wishes import Writer
from tests.invariants.conftest import config, drain, results, submit
from tests.once import Once

CHOICES: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "max_tokens": 16},
    {"temperature": 1.5, "top_k": 90, "top_p": 0.99, "max_tokens": 16},
)


@pytest.mark.crossed
@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("writer", [*qwen3.WRITERS[:1], *library_text.EVERY], ids=lambda writer: writer.kind)
def test_what_is_written_with_adapters_is_what_peft_writes_with_them(
    writer: Writer, once: Once, tmp_path: Path
) -> None:
    folder = once.folder(writer.name, writer.build)
    worn = [_adapter(folder, tmp_path / f"{rank}", rank) for rank in (4, 2)]
    cases = [(prompt, how) for prompt in qwen3.PROMPTS[::2] for how in CHOICES]
    asks = [
        Ask({"prompt": prompt}, make_params(DiffusionParams(seed=7), {**how, "loras": loras}))
        for loras in (*([str(adapter)] for adapter in worn), [])
        for prompt, how in cases
    ]
    engine = start(config(folder))
    ids = submit(engine, *asks)
    found = [list(result.written[0].tokens) for result in results(engine, drain(engine), ids)]
    engine.close()
    theirs = (*(PeftModel.from_pretrained(_model(folder), adapter) for adapter in worn), _model(folder))
    assert found == [_written(model, folder, *case) for model in theirs for case in cases]
    drawn = found[1::2]
    assert len({tuple(each) for each in drawn}) == len(drawn), "each is seen in what is written"


def _adapter(folder: Path, where: Path, rank: int) -> Path:
    """A random one for every linear layer but the last, as PEFT saves it."""
    torch.manual_seed(rank)
    how = LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(_model(folder), how).save_pretrained(where)
    return where


def _written(model: Any, folder: Path, prompt: str, choices: dict[str, Any]) -> list[int]:
    """What transformers' `generate` writes, by chance of seed 7."""
    ids = torch.tensor([qwen3.prompt_ids(folder, prompt)])
    torch.manual_seed(7)
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **qwen3.theirs(choices))
    return [int(token) for token in found[0, ids.shape[1] :]]


def _model(folder: Path) -> Any:
    with quiet("transformers"):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
