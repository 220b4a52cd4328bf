"""What is written with an adapter that PEFT has made is what PEFT and transformers write with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3ForCausalLM

from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.loader.components import quiet
from tests.checkpoints import qwen3
from tests.invariants.conftest import config, drain, results, submit
from tests.once import Once

PROJECTIONS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
CHOICES: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "max_tokens": 16},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "max_tokens": 16},
)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_what_is_written_with_adapters_is_what_peft_writes_with_them(once: Once, tmp_path: Path) -> None:
    folder = once.folder("Qwen3ForCausalLM", qwen3.build)
    worn = [_adapter(folder, tmp_path / f"{rank}", rank) for rank in (4, 2)]
    cases = [(adapter, prompt, how) for adapter in (*worn, None) for prompt in qwen3.PROMPTS[::2] for how in CHOICES]
    asks = [
        Ask(
            {"prompt": prompt},
            make_params(DiffusionParams(seed=7), {**how, "loras": [str(adapter)] if adapter else []}),
        )
        for adapter, prompt, how in cases
    ]
    engine = start(config(folder))
    ids = submit(engine, *asks)
    found = [list(result.written[0].tokens) for result in results(engine, drain(engine), ids)]
    engine.close()
    assert found == [_theirs(folder, *case) for case in cases]
    assert len({tuple(each) for each in found}) == len(cases), "each is seen in what is written"


def _adapter(folder: Path, where: Path, rank: int) -> Path:
    """A random one for every projection, as PEFT saves it."""
    torch.manual_seed(rank)
    how = LoraConfig(r=rank, lora_alpha=8, target_modules=PROJECTIONS, init_lora_weights=False)
    with quiet("transformers"):
        model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    get_peft_model(model, how).save_pretrained(where)
    return where


def _theirs(folder: Path, adapter: Path | None, prompt: str, choices: dict[str, Any]) -> list[int]:
    """What transformers' `generate` writes, by chance of seed 7."""
    with quiet("transformers"):
        model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor([qwen3.prompt_ids(folder, prompt)])
    torch.manual_seed(7)
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **qwen3.theirs(choices))
    return [int(token) for token in found[0, ids.shape[1] :]]
