"""The page of models says what the code declares."""

from __future__ import annotations

from omnimuse.models import REGISTRY
from tools.models_page import PAGE, page


def test_the_page_is_what_make_models_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make models`"


def test_every_published_checkpoint_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    ids = [model for spec in REGISTRY.specs() for variant in spec.variants for model in variant.ids]
    assert ids and all(f"`{model}`" in text for model in ids)
