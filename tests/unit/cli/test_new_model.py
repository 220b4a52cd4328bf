"""`omnimuse new-model`: what it writes imports, registers and draws a tiny checkpoint, and says what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import omnimuse
from omnimuse.cli.app import main
from omnimuse.compat.draft.facts import ModelFacts, read_facts_of
from omnimuse.compat.draft.texts import files
from omnimuse.core.errors import ModelError

ARCH = "AuraFlowPipeline"
ROOT = Path(omnimuse.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a checkout has, without what others built there."""
    for folder in ("omnimuse", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    (tmp_path / "omnimuse" / "bundled").symlink_to(ROOT / "omnimuse" / "bundled")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-m", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_a_family_of_a_class_registers_and_its_parity_test_says_what_to_write(checkout: Path) -> None:
    words = ["new-model", "aura_flow", "--from", ARCH, "--into", str(checkout)]
    assert main(words) == 0
    assert f'"{ARCH}": "omnimuse.models.aura_flow",' in (checkout / "omnimuse/models/__init__.py").read_text()
    listed = run(checkout, "omnimuse", "models")
    assert "AuraFlow: to be said in one line" in listed.stdout, listed.stderr
    tested = run(
        checkout, "pytest", "-p", "no:cacheprovider", "tests/parity/test_pipelines.py", "-k", f"latents and {ARCH}"
    )
    assert tested.returncode == 1, tested.stdout
    assert "unexpected: " in tested.stdout and "joint_transformer_blocks.0" in tested.stdout
    assert main(words) == 2, "a second time"


DRAWN = ("AuraFlowPipeline", "CogView4Pipeline", "PixArtSigmaPipeline", "SanaPipeline")
"""Classes whose drafts have all components of a tiny checkpoint."""


@pytest.fixture(scope="module", params=DRAWN)
def draft(request: pytest.FixtureRequest) -> tuple[ModelFacts, dict[str, str]]:
    """What is known of a class, and the files that are made of it, by their last two names."""
    facts = read_facts_of(request.param)
    texts = files(request.param.removesuffix("Pipeline").lower(), facts)
    return facts, {"/".join(path.split("/")[-2:]).replace(".py", ""): text for path, text in texts.items()}


def part_of(draft: tuple[ModelFacts, dict[str, str]], name: str) -> str:
    return next(text for path, text in draft[1].items() if path.endswith(f"/{name}"))


def test_a_draft_is_called_as_its_class_is(draft: tuple[ModelFacts, dict[str, str]]) -> None:
    called = draft[0].arch.removesuffix("Pipeline")
    assert f"class {called}(Pipeline):" in part_of(draft, "pipeline")
    assert f"class {called}Transformer(Network):" in part_of(draft, "transformer")
    assert f'summary="{called}: to be said in one line"' in part_of(draft, "spec")


READERS = {
    "AuraFlowPipeline": 'Reader(Component(("UMT5EncoderModel",)), Component(("T5Tokenizer",)))',
    "CogView4Pipeline": (
        'Reader(Component(("GlmModel",)), Component(("PreTrainedTokenizerFast", "TokenizersBackend")))'
    ),
    "PixArtSigmaPipeline": "T5)",
    "SanaPipeline": "GEMMA2,",
}


def test_a_spec_is_made_of_what_many_families_have(draft: tuple[ModelFacts, dict[str, str]]) -> None:
    facts, spec = draft[0], part_of(draft, "spec")
    assert "latent_model(" in spec and f'"{facts.network_class}")' in spec and ".over(SQUARE)" in spec
    assert READERS[facts.arch] in spec
    assert not {"AutoTokenizer", "Gemma2PreTrainedModel"} & {cls for _, cls in facts.components.values()}


@pytest.mark.parametrize(
    ("arch", "shape", "counted"),
    [
        ("BriaPipeline", "packed_shape", "packed_tokens"),
        ("CogView4Pipeline", "latent_shape", "packed_tokens"),
        ("SanaPipeline", "latent_shape", "tokens"),
    ],
)
def test_latents_have_the_shape_that_the_reference_gives_its_network(arch: str, shape: str, counted: str) -> None:
    texts = files("another", read_facts_of(arch))
    pipeline = texts["omnimuse/models/another/pipeline.py"]
    assert f"InitLatents({shape})," in pipeline and f"token_count={counted}," in pipeline


@pytest.mark.crossed
def test_a_tiny_checkpoint_is_built_and_its_reference_draws(
    draft: tuple[ModelFacts, dict[str, str]], tmp_path: Path
) -> None:
    [(_, text)] = [(path, text) for path, text in draft[1].items() if path.startswith("checkpoints/")]
    made: dict[str, Any] = {"__name__": "tests.checkpoints.drafted"}
    exec(compile(text, "drafted", "exec"), made)
    folder = made["build"](tmp_path / "tiny")
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 4_000_000
    [family] = made["FAMILIES"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        [latents] = family.reference(folder, family.wishes[2:], "latent")
    assert torch.isfinite(latents).all() and latents.ndim == 3


def test_what_nobody_has_a_small_one_of_is_a_function_that_says_so() -> None:
    text = files("another", read_facts_of("BriaFiboPipeline"))["tests/checkpoints/another.py"]
    made = text.index("def vae() -> AutoencoderKLWan:")
    assert text.index('raise NotImplementedError("a tiny AutoencoderKLWan', made) < text.index("def build(")
    assert text.count("raise NotImplementedError") == 1
    assert 'parts.save_module(folder, "vae", seed, vae)' in text


def test_a_tokenizer_of_which_nobody_has_a_small_one_is_called_before_its_encoder_is_as_large() -> None:
    facts = read_facts_of("AuraFlowPipeline")
    strange = replace(facts, components={**facts.components, "tokenizer": ("transformers", "BertTokenizer")})
    text = files("another", strange)["tests/checkpoints/another.py"]
    assert "def small_tokenizer() -> BertTokenizer:" in text
    assert text.index("tokenizer = small_tokenizer()") < text.index("encoders.umt5_encoder(len(tokenizer))")
    quick = replace(facts, components={**facts.components, "tokenizer": ("transformers", "T5TokenizerFast")})
    assert "tokenizer = encoders.t5_tokenizer()" in files("another", quick)["tests/checkpoints/another.py"]


def test_a_class_whose_network_has_no_defaults_is_refused() -> None:
    with pytest.raises(ModelError, match="give the folder of a checkpoint of HunyuanDiTPipeline"):
        read_facts_of("HunyuanDiTPipeline")


def test_a_checkpoint_tells_more_than_its_class(z_image_folder: Path) -> None:
    facts = read_facts_of(str(z_image_folder))
    assert facts.arch == "ZImagePipeline"
    assert facts.config["dim"] == 96
    assert facts.weights["layers.0.attention.to_q.weight"] == (96, 96)


def test_a_draft_leaves_out_what_is_optional_and_begins_with_the_rules_of_blocks_that_are_known() -> None:
    facts = read_facts_of("BriaPipeline")
    assert facts.without == ("image_encoder", "feature_extractor")
    texts = files("another", facts)
    assert "image_encoder" not in texts["omnimuse/models/another/spec.py"]
    assert '"image_encoder": None,' in texts["tests/checkpoints/another.py"]
    weights = texts["omnimuse/models/another/weights.py"]
    assert "(*BLOCKS,)" in weights and "#   x_embedder.weight" in weights
    assert "#   transformer_blocks" not in weights and "#   single_transformer_blocks" not in weights


def test_a_network_is_kept_although_its_class_calls_it_optional() -> None:
    facts = read_facts_of("WanVACEPipeline")
    assert facts.network == "transformer" and not facts.without


def test_the_worked_example_has_as_many_lines_as_the_page_says() -> None:
    page = (ROOT / "docs/add-a-model.md").read_text()
    told = re.search(r"(\d+) lines that\s+are not empty, and (\d+) of a builder", page)
    assert told is not None
    written = sorted((ROOT / "omnimuse/models/bria").glob("*.py")), [ROOT / "tests/checkpoints/bria.py"]
    lines = [sum(bool(line.strip()) for path in paths for line in path.read_text().splitlines()) for paths in written]
    assert list(map(int, told.groups())) == lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Aura-Flow", "--from", ARCH], "no name of a family"),
        (["aura_flow", "--from", ARCH, "--into", "/"], "no checkout"),
        (["another", "--from", "ZImagePipeline", "--into", str(ROOT)], "has a family already"),
        (["aura_flow", "--from", "NoSuchPipeline", "--into", str(ROOT)], "NoSuchPipeline"),
    ],
)
def test_what_makes_no_family_is_refused_and_nothing_is_written(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((ROOT / "omnimuse/models").iterdir())
    assert main(["new-model", *words]) == 2 or main(["new-model", *words]) == 1
    assert told in capsys.readouterr().err
    assert sorted((ROOT / "omnimuse/models").iterdir()) == before
