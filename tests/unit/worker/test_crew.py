"""A thread that is spared while a neighbour computes: when that may be, and that no bit of a forward depends on it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse.core.caches import CacheConfig
from omnimuse.core.config import AttentionConfig, Choice, Config, HostConfig, ModelConfig, QuantConfig, ScheduleConfig
from omnimuse.worker.crew import Crew
from omnimuse.worker.explain import explain


def spare(config: Config) -> Choice:
    [choice] = [choice for choice in explain(config) if choice.name == "thread to spare"]
    return choice


def config(folder: Path, tier: str = "auto") -> Config:
    schedule = ScheduleConfig(tier=tier)  # type: ignore[arg-type]
    return Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=schedule, host=HostConfig(threads=2)
    )


def test_a_forward_has_one_thread_fewer_while_one_is_spared_and_what_it_waits_is_counted() -> None:
    waits, times = iter([1.0, 1.5]), iter([10.0, 12.0])
    crew, before = Crew(3, lambda: None, lambda: next(waits), lambda: next(times)), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with crew.at_work():
            assert torch.get_num_threads() == 3
        crew.spare()
        with crew.at_work():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
        assert (crew.seconds, crew.waiting) == (2.0, 0.5)
        crew.recall()
        with crew.at_work():
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_explain_says_whether_a_thread_may_be_spared_and_why_not(
    z_image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    plain = config(z_image_folder)
    assert spare(plain).value == "one"
    for other, reason in (
        (config(z_image_folder, "fast"), "in the tier fast"),
        (config(z_image_folder, "exact"), "in the tier exact"),
        (replace(plain, cache=CacheConfig("teacache", 0.3)), "step caches"),
        (replace(plain, quantize=QuantConfig({"": "int8"})), "quantized"),
        (replace(plain, attention=AttentionConfig("reference")), "attention by 'reference'"),
    ):
        found = spare(other)
        assert found.value == "none" and reason in found.reason
    alone = explain(replace(plain, host=HostConfig(threads=1)))
    assert not [choice for choice in alone if choice.name == "thread to spare"]


def test_where_bits_depend_on_the_number_of_threads_none_is_spared_and_the_trial_is_made_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[None] = []

    def obstacle() -> str:
        tried.append(None)
        return "products do"

    crew = Crew(3, obstacle)
    with caplog.at_level(logging.INFO, "omnimuse"):
        crew.spare()
        crew.spare()
    assert not crew.spared and len(tried) == 1
    assert "products do" in caplog.text
