"""Every command line of the documents, at the parser that takes it, and two of them with a server."""

from __future__ import annotations

import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimuse.cli.app import parser_of
from omnimuse.cli.contract import with_contract
from omnimuse.cli.engine import read_config
from omnimuse.core.config import AttentionConfig, Config, ContractConfig, ParallelConfig, ScheduleConfig
from tests.compat.scripts import end2end, openai_chat_client, text_to_image
from tests.server.whole_server import WholeServer

QWEN = "vllm serve Qwen/Qwen-Image --omni --port 8091"
ANY = "vllm serve M --omni"

SERVED: dict[str, dict[str, Any]] = {
    f"{QWEN} --enable-diffusion-pipeline-profiler": {"contract": ContractConfig(profile=True)},
    f"{ANY} --port 8091": {},
    f"{ANY} --port 8091 --stage-configs-path stages.yaml": {},
    f"{ANY} --tensor-parallel-size 2": {"parallel": ParallelConfig(tensor=2)},
    f"{ANY} --ulysses-degree 2": {"parallel": ParallelConfig(ulysses=2)},
    f"{ANY} --usp 2": {"parallel": ParallelConfig(ulysses=2)},
    f"{ANY} --cfg-parallel-size 2": {"parallel": ParallelConfig(cfg=2)},
    f"{ANY} --usp 2 --use-hsdp": {"parallel": ParallelConfig(ulysses=2, shard=2)},
    f"{ANY} --enforce-eager": {},
    f"{ANY} --diffusion-attention-backend FLASH_ATTN": {"attention": AttentionConfig("flash_attn_2")},
    f"{ANY} --diffusion-attention-config.per_role.self.backend SAGE_ATTN": {
        "attention": AttentionConfig(per_role={"self": "sage"})
    },
    f"{ANY} --step-execution --max-num-seqs 4": {
        "contract": ContractConfig(steps=True),
        "schedule": ScheduleConfig(max_running=4),
    },
}
"""The lines that start a server, and what each chooses."""

SCRIPTS = {
    'your_model_example.py --model path/to/model --prompt "a cat"': text_to_image,
    'your_model_example.py --model your-org/your-model-name --prompt "a beautiful landscape" --output-dir ./outputs': (
        text_to_image
    ),
    "your_model_example.py --num-inference-steps 100 --guidance-scale 9.0": text_to_image,
    "your_model_example.py --num-inference-steps 20 --guidance-scale 5.0": text_to_image,
    'end2end.py --model your-org/your-model-name --modality text2img --prompts "A cute cat"': end2end,
    'openai_chat_client.py --prompt "A cute cat" --modality text2img': openai_chat_client,
}
"""Those that call an example, and what it is here."""


@pytest.mark.parametrize("line", SERVED)
def test_a_line_that_starts_a_server_chooses_what_it_says(line: str) -> None:
    first, command, *words = line.split()
    assert (first, command) == ("vllm", "serve")  # of which the first word becomes ours
    args = parser_of(command).read(words)
    read = with_contract(args, read_config(args))
    plain: Config = read_config(parser_of(command).read(words[:1]))
    assert read == replace(plain, **SERVED[line])


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_line_that_calls_an_example_is_taken(line: str) -> None:
    _, *words = shlex.split(line)
    args = vars(SCRIPTS[line].parser().parse_args(words))
    said = dict(zip(words[::2], words[1::2], strict=True))
    for flag, value in said.items():
        found = args[flag.removeprefix("--").replace("-", "_")]
        assert str(found[0] if isinstance(found, list) else found) == value


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_the_guides_server_and_its_client_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--omni",
        "--enable-diffusion-pipeline-profiler",
        "--max-num-seqs",
        "4",
        "--vae-use-tiling",
        "--enforce-eager",
    ]
    with WholeServer(tmp_path / "server", "omnimuse/shapes", *flags) as server:
        server.wait_ready()
        words = ["--prompt", "A cute cat", "--modality", "text2img", "--server", server.url, "--output", "cat.png"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["openai_chat_client.py", *words])
        runpy.run_path(str(openai_chat_client.__file__), run_name="__main__")
    assert "Saved image to: cat.png" in capsys.readouterr().out
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.width > 0
