"""Files that a pipeline asks the hub for: what is on this machine is taken there, and what fails says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnimuse.compat.vllm_omni.transformers_utils.repo_utils import LocalFirst, hf_api
from omnimuse.core.errors import ModelError


def test_what_is_on_this_machine_is_not_asked_from_the_hub(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    api = hf_api()
    assert api is hf_api()
    found = api.hf_hub_download(repo_id=str(tmp_path), filename="config.json", subfolder="vae", revision="main")
    assert found == api.hf_hub_download(str(tmp_path), "vae/config.json") == str(tmp_path / "vae" / "config.json")
    assert api.snapshot_download(str(tmp_path), allow_patterns=["*.json"]) == str(tmp_path)
    assert Path(api.snapshot_download(repo_id="omnimuse/shapes"), "model_index.json").is_file()
    with pytest.raises(ModelError, match=r"has no file vae/weights.safetensors; copy it there"):
        api.hf_hub_download(str(tmp_path), "weights.safetensors", subfolder="vae")


def test_what_the_hub_does_not_give_says_what_to_do(tmp_path: Path) -> None:
    nobody = LocalFirst(endpoint="http://127.0.0.1:9")
    for ask in (nobody.snapshot_download, lambda repo, **told: nobody.hf_hub_download(repo, "config.json", **told)):
        with pytest.raises(ModelError, match=r"some/model is not .*(give the path of a local folder|hf download)"):
            ask("some/model", cache_dir=tmp_path)
