"""Deploy files with a mistake in them: before anything is drawn, people are told the file, the place, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnimuse import Omni
from omnimuse.core.errors import ConfigError
from tests.processes import children

READ = "encode prompt, encode negative prompt, encode image, draw image latents, init latents"
MISTAKES = {
    "no stage of that name": (
        f"pools: [{{name: a, stages: [{READ}, denose]}}, {{name: b, stages: ['*']}}]",
        "pool a: there is no stage 'denose'; did you mean 'denoise'?",
    ),
    "a stage left out": (
        f"pools: [{{name: a, stages: [{READ}]}}, {{name: b, stages: [decode]}}]",
        "pool b: 'decode' stands where 'denoise' is to come",
    ),
    "the last stage left out": (
        f"pools: [{{name: a, stages: [{READ}]}}, {{name: b, stages: [denoise]}}]",
        "no pool holds the stage 'decode'; the stages are",
    ),
    "a stage in two pools": (
        f"pools: [{{name: a, stages: [{READ}, denoise]}}, {{name: b, stages: [denoise, decode]}}]",
        "pool b: 'denoise' stands where 'decode' is to come; pools hold every stage once",
    ),
    "two pools of one name": (
        "pools: [{name: a, tracks: [0]}, {name: a, stages: ['*']}]",
        "two pools are called 'a'; give each a name of its own",
    ),
    "no pool": ("pools: []", "pools is no list of mappings; write one for every pool, each with a `name`"),
    "no connector of that name": (
        f"pools: [{{name: a, stages: [{READ}], connector: local}}, {{name: b, stages: ['*'], connector: pigeon}}]",
        "pool b: connector 'pigeon' is not known; use one of local, shared_memory, tcp",
    ),
    "options of a connector without any": (
        "{connectors: {tcp: {port: 1}}, pools: [{name: a, stages: ['*'], connector: tcp}]}",
        "pool a: connectors: tcp has no options; leave port out",
    ),
    "options of a connector that nobody has": (
        "{connectors: {ray: {address: auto}}, pools: [{name: a, stages: ['*']}]}",
        "connectors: no pool says `connector: ray`; leave it out, or name it",
    ),
    "the rest behind something": (
        f"pools: [{{name: a, stages: [{READ}, '*']}}]",
        "pool a: '*' is all stages that are left, and stands alone",
    ),
    "a track that is not there": (
        "pools: [{name: a, tracks: [1]}]",
        "pool a: there is no track 1; the tracks are 0 to 0",
    ),
    "no writer of that name": (
        "pools: [{name: a, stages: ['*'], writer: vlm}]",
        "pool a: writer='vlm' is not allowed; use one of own, vllm",
    ),
    "more stages than there are": (
        "stages: [{stage_id: 0}, {stage_id: 1}]",
        "pool stage1 is left with no stage: those before it hold all there are",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_file_before_anything_starts(mistake: str, tmp_path: Path) -> None:
    text, said = MISTAKES[mistake]
    file = tmp_path / "pools.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        Omni("omnimuse/shapes", device="cpu", deploy=file)
    assert str(refused.value).startswith(f"{file}: {said}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("connector", ["local", "shared_memory"])
@pytest.mark.timeout(120)
def test_a_device_that_is_not_there_is_told_with_the_pool_that_wants_it(connector: str, tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(f"pools: [{{name: all, stages: ['*'], device: 3, connector: {connector}}}]")
    with pytest.raises(ConfigError) as refused:
        Omni("omnimuse/shapes", deploy=file)
    assert str(refused.value).startswith(f"{file}: pool all: device='cuda:3' is not here")
    assert not children(torch.multiprocessing.current_process().pid or 0, "deploy.station")
