"""What differences between a checkpoint and a network are taken to mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.loader.differences import Differences, guess, refuse_differences


def test_up_to_eight_names_of_each_kind_are_listed_with_both_shapes() -> None:
    found = Differences(tuple(f"m{i}" for i in range(10)), ("u0",), (("w", (96, 64), (96, 128)), ("v", (4,), (1, 4))))
    with pytest.raises(ModelError) as caught:
        refuse_differences(Path("net"), found)
    message = str(caught.value)
    assert "10 missing: m0, m1, m2, m3, m4, m5, m6, m7, and 2 more" in message
    assert "1 unexpected: u0" in message
    assert "w is [96, 128], config.json asks for [96, 64], v is [1, 4], config.json asks for [4]" in message


def test_nothing_different_is_no_error() -> None:
    refuse_differences(Path("net"), Differences())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Differences(("a",), ("a.lora_A.weight",)), "LoRA adapters"),
        (Differences((), ("a.weight_scale",)), "quantized"),
        (Differences(("a.w", "b.w"), ("model.net.a.w", "model.net.b.w")), "without 'model.net.' in front"),
        (Differences((), (), (("a", (96, 96), (128, 128)), ("b", (96,), (128,)))), "wider model"),
        (Differences((), (), (("a", (96, 96), (64, 64)),)), "a size is 64 where config.json says 96"),
        (Differences(("l.4.a", "l.4.b", "l.5.a", "l.5.b"), ()), "lack blocks 4 to 5 of l"),
        (
            Differences((), ("n.l.2.a", "n.l.2.b")),
            "have extra blocks 2 of n.l: they seem to belong to a deeper",
        ),
        (Differences(("a",), ("b",)), "(b, where a is asked for): use a folder that diffusers saved; or, if you are"),
        (Differences(("a",), ()), "Use the config.json that was saved with these weights"),
    ],
)
def test_the_likely_cause_is_named(found: Differences, said: str) -> None:
    assert said in guess(found)


def test_left_over_tensors_that_change_nothing_are_told_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    idle = ("a.num_batches_tracked", "b.position_ids", "rotary_emb.inv_freq", "rope.freqs_cis", "freqs")
    refuse_differences(Path("net"), Differences((), idle))
    assert f"net has tensors that nothing reads and that change nothing: {', '.join(idle)}" in caplog.messages
    with pytest.raises(ModelError, match=r"1 unexpected: b\.weight\n"):
        refuse_differences(Path("net"), Differences((), (*idle, "b.weight")))


@pytest.mark.parametrize("name", ["a.steps", "freqs.weight", "a.inv_freq_proj", "blocks.2.position_ids_embedding"])
def test_a_tensor_that_only_sounds_like_a_counter_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="1 unexpected"):
        refuse_differences(Path("net"), Differences((), (name,)))
