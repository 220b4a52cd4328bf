"""The second device of the suite has the rules of an accelerator, and sees every wait of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.worker.clock import Share
from tests.second_device import ELSEWHERE, Elsewhere, SecondDevice


@pytest.fixture(autouse=True)
def device() -> Iterator[SecondDevice]:
    with torch.inference_mode(), SecondDevice() as device:
        yield device


@pytest.fixture
def there(device: SecondDevice) -> Tensor:
    """[[0, 1, 2], [3, 4, 5]] on the second device."""
    return torch.arange(6, dtype=torch.float32, device=ELSEWHERE).view(2, 3)


def test_what_is_made_from_its_tensors_lies_there(there: Tensor) -> None:
    makers = (there + 1, there[0], torch.zeros_like(there), there.new_ones(2), there.to(torch.float16), there.cos())
    for made in (*makers, nn.Linear(3, 2).to(ELSEWHERE)(there), torch.empty(2, device=ELSEWHERE)):
        assert isinstance(made, Elsewhere)
        assert made.device == ELSEWHERE


def test_it_computes_what_the_cpu_computes_also_in_place_and_through_views(there: Tensor) -> None:
    there[:, 1] += 10
    there[0].copy_(there[1])
    assert there.tolist() == [[3.0, 14.0, 5.0], [3.0, 14.0, 5.0]]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: torch.stack([x[0, 0], torch.ones(())]),
        lambda x: x @ torch.ones(3, 1),
        lambda x: nn.functional.linear(x, torch.ones(1, 3)),
    ],
)
def test_a_tensor_of_the_cpu_is_refused(there: Tensor, mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="lies on the CPU"):
        mix(there)


def test_a_single_number_of_the_cpu_may_come_along_in_arithmetic(there: Tensor, device: SecondDevice) -> None:
    assert (there * torch.tensor(2.0)).device == ELSEWHERE
    assert not device.waits


def test_what_keys_weigh_is_told_there_as_on_the_cpu(device: SecondDevice) -> None:
    plain = [torch.linspace(-1, 1, 24).view(1, 3, 2, 4) * scale for scale in (1.0, 0.5, -2.0)]
    found = Sdpa().weigh(*(each.to(ELSEWHERE, non_blocking=True) for each in plain))
    assert not device.waits
    assert all(torch.equal(there.cpu(), here) for there, here in zip(found, Sdpa().weigh(*plain), strict=True))


def test_torch_makes_flex_attention_for_no_label_but_those_it_knows(there: Tensor) -> None:
    """So what lies around it is tried without it (`tests/invariants/test_device.py`)."""
    x = there.view(1, 2, 1, 3)
    with pytest.raises(ValueError, match=r"FlexAttention is only supported on .*CUDA.*lazy"):
        flex_attention(x, x, x)


@pytest.mark.parametrize("mode", [True, False])
def test_parts_of_what_was_uploaded_in_one_mode_of_inference_are_looked_at_in_the_other(
    device: SecondDevice, mode: bool
) -> None:
    plain = torch.arange(6.0)
    with torch.inference_mode(mode):
        there = nn.Parameter(plain.to(ELSEWHERE, non_blocking=True), requires_grad=False)
    with torch.inference_mode(not mode):
        found = nn.functional.linear(there.view(2, 3)[:1], there.view(2, 3).t().reshape(2, 3))
        parts = there.view(2, 3), there.detach(), nn.Parameter(there[2:], requires_grad=False)
    assert torch.equal(found.cpu(), nn.functional.linear(plain.view(2, 3)[:1], plain.view(2, 3).t().reshape(2, 3)))
    assert [part.is_inference() for part in parts] == [mode] * 3


def test_a_copy_has_memory_of_its_own(there: Tensor) -> None:
    plain = torch.zeros(3)
    up, down = plain.to(ELSEWHERE), there.to("cpu")
    plain += 1
    there += 10
    assert up.tolist() == [0, 0, 0] and down.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_nothing_is_drawn_there_and_no_array_is_made(there: Tensor) -> None:
    with pytest.raises(RuntimeError, match="draw on the CPU"):
        torch.randn(2, device=ELSEWHERE)
    with pytest.raises(TypeError, match="copy it to the CPU first"):
        there.numpy()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.to("cpu"),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[0, 0].item(),
        lambda x: float(x[0, 0]),
        lambda x: bool((x > 0).all()),
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
        lambda x: x.nonzero(as_tuple=True),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(dim=0),
        lambda x: x[x > 0],
        lambda x: x[[0]],
        lambda x: x[torch.tensor([0])],
        lambda x: torch.where(x > 0, x, 1.0),
        lambda x: torch.ones(2, 3).copy_(x),
        lambda x: x.to("cpu", non_blocking=True),  # is read before it is there, or waits; `send` knows
        lambda x: torch.ones(2, 3).copy_(x, non_blocking=True),
        lambda x: x.copy_(torch.ones(2, 3)),
        lambda x: torch.ones(2, 3).to(x.device),
        lambda x: torch.ones(2, 3).to(x),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([[x[0, 0] / 2]]),
    ],
)
def test_the_host_is_seen_to_wait_once(there: Tensor, device: SecondDevice, read: Callable[[Tensor], object]) -> None:
    read(there)
    assert len(device.waits) == 1, device.waits


@pytest.mark.parametrize(
    "queue",
    [
        lambda x: x[0],
        lambda x: x[:, 1:],
        lambda x: x.split(1)[1],
        lambda x: torch.stack([x[1], x[0]]),
        lambda x: x * 2.0 + x.new_full((1,), 3.0),
        lambda x: torch.where(x > 0, x, torch.ones_like(x)),
        lambda x: x.masked_fill(x > 0, 0.0),
        lambda x: torch.arange(3, device=x.device) / 3,
        lambda x: x.copy_(torch.ones(2, 3), non_blocking=True),
        lambda x: x.copy_(x.clone()),
    ],
)
def test_the_host_does_not_wait(there: Tensor, device: SecondDevice, queue: Callable[[Tensor], object]) -> None:
    queue(there)
    assert device.waits == []


def test_what_was_sent_and_what_a_clock_tells_are_waited_for_when_they_are_asked_for(
    there: Tensor, device: SecondDevice
) -> None:
    sent, clock = device.send(there[1]), device.clock()
    early = clock.since(clock.mark())
    assert not sent.here() and device.waits == []
    assert sent.wait().tolist() == [3.0, 4.0, 5.0] and len(device.waits) == 1
    assert early.seconds() >= 0 and len(device.waits) == 1, "what came later is there"
    late = Share(clock.since(clock.mark()), 2)
    assert late.seconds() >= 0 and late.seconds() >= 0 and len(device.waits) == 2
    assert device.send(torch.ones(2)).here(), "it was in main memory all along"


def test_a_wait_says_where_it_was(there: Tensor, device: SecondDevice) -> None:
    from omnimuse.cache.stepcache import relative_changes

    relative_changes([(there, there)])
    [wait] = device.waits
    assert wait.startswith("(1,) to the host at stepcache.py:")
