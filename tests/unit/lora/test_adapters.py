"""What an engine remembers of adapters, and what layers wear: within bounds, and only while they should."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from omnimuse.core.errors import CapacityError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.lora.adapter import Adapter, Joined, Product, Worn
from omnimuse.lora.adapters import Adapters, adapt
from omnimuse.lora.linear import Adapted, Rack

SIZE = 2 * 4 * 8 * 4
"""Bytes of an adapter here: two matrices of rank 4 and width 8 in float32."""


class Shelf:
    """Files of adapters that are only numbers: `read` counts, `versions` change. `watch` is called at every reading."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.watch: Callable[[], None] = lambda: None
        self.versions: dict[str, int] = {}

    def stamp(self, source: str) -> str:
        return f"{source.removeprefix('./')}@{self.versions.get(source, 0)}"

    def read(self, source: str, component: str, room: Callable[[Adapter], None]) -> Adapter:
        site, name = ("transformer", "layer"), f"{self.stamp(source)} {component}"
        planned = Product(torch.empty(4, 8, device="meta"), torch.empty(8, 4, device="meta"))
        room(Adapter(name, {site: (planned,)}))
        self.reads.append(source)
        self.watch()
        generator = torch.Generator().manual_seed(len(source) + self.versions.get(source, 0))
        down, up = torch.randn(4, 8, generator=generator), torch.randn(8, 4, generator=generator)
        return Adapter(name, {site: (Product(down, up),)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8).requires_grad_(False)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def net() -> Net:
    return Net()


Make = Callable[[int], Adapters]


@pytest.fixture
def room_for(shelf: Shelf, net: Net) -> Make:
    """Adapters of which so many have room."""
    return lambda count: Adapters(partial(adapt, {"transformer": net}), shelf.read, shelf.stamp, limit=count * SIZE)


def test_a_layer_wears_an_adapter_only_inside_of_wearing(room_for: Make, net: Net) -> None:
    adapters, x = room_for(2), torch.randn(3, 8)
    weight, before = net.layer.weight, net.layer(x)
    numbers = weight.clone()
    worn = adapters.fetch([Lora("a", 0.5)])
    assert torch.equal(net.layer(x), before)
    with adapters.wearing(worn):
        inside = net.layer(x)
    [product] = worn[0].adapter.products["transformer", "layer"]
    assert torch.allclose(inside, before + 0.5 * x @ product.down.T @ product.up.T, atol=1e-5)
    assert torch.equal(net.layer(x), before)
    assert net.layer.weight is weight and torch.equal(weight, numbers), "the layer's own weight is untouched"


def test_a_layer_wears_several_once_each_and_what_it_wore_again_when_others_are_off(room_for: Make, net: Net) -> None:
    adapters, x = room_for(2), torch.randn(3, 8)
    before = net.layer(x)
    both = adapters.fetch([Lora("a", 0.5), Lora("bb", -2.0)])
    expected = before.clone()
    for worn in both:
        [product] = worn.adapter.products["transformer", "layer"]
        expected += worn.scale * x @ product.down.T @ product.up.T
    with adapters.wearing(both):
        assert torch.allclose(net.layer(x), expected, atol=1e-5)
        with adapters.wearing(()):
            assert torch.equal(net.layer(x), before)
        assert adapters.worn == both and torch.allclose(net.layer(x), expected, atol=1e-5)
    assert adapters.worn == ()


@pytest.mark.parametrize("whole", [False, True])
def test_a_product_of_which_two_ranks_have_half_the_inputs_each_is_that_of_all(whole: bool) -> None:
    down, up, bias, x = torch.randn(4, 8), torch.randn(6, 8 if whole else 4), torch.randn(6), torch.randn(3, 8)
    expected, found = torch.zeros(3, 6), torch.zeros(3, 6)
    Product(None if whole else down, up, bias=bias).add(expected, x, 0.5)
    first, second = slice(0, 3), slice(3, 8)

    def half(part: slice) -> Product:
        return Product(None, up[:, part], bias=bias) if whole else Product(down[:, part], up, bias=bias)

    there = list[Tensor]()
    half(second).add(torch.zeros(3, 6), x[:, second], 0.5, lambda part: there.append(part) or part)
    half(first).add(found, x[:, first], 0.5, lambda part: part + there[0])
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize(("outputs", "rank"), [(12, 8), (8, 8), (4, 4)])
def test_a_whole_difference_is_joined_with_products_by_the_smaller_side(outputs: int, rank: int, start: int) -> None:
    site, weight = ("transformer", "layer"), torch.empty(outputs + 2, 8, device="meta")
    shapes = {
        "product": Product(torch.randn(4, 8), torch.randn(outputs + 2, 4)),
        "whole": Product(None, torch.randn(outputs, 8), start),
    }
    worn = [
        Worn(Adapter(name, {site: (each,)}), scale)
        for (name, each), scale in zip(shapes.items(), (0.5, -2.0), strict=True)
    ]
    x, expected = torch.randn(3, 8), torch.zeros(3, outputs + 2)
    for each in worn:
        each.adapter.products[site][0].add(expected, x, each.scale)
    joined = Joined.of(weight, [(each, each.adapter.products[site]) for each in worn])
    torch.testing.assert_close(joined.added(torch.zeros(3, outputs + 2), x), expected, rtol=1e-5, atol=1e-5)
    assert joined.scale.shape == (4 + rank,)
    assert sum(each.nbytes for each in joined) == Joined.bytes_of(weight.float(), [*shapes.values()])


def test_after_a_failure_nothing_is_worn(room_for: Make, net: Net) -> None:
    adapters, x = room_for(2), torch.randn(3, 8)
    before = net.layer(x)
    with pytest.raises(ZeroDivisionError), adapters.wearing(adapters.fetch([Lora("a")])):
        raise ZeroDivisionError
    assert torch.equal(net.layer(x), before)


def test_the_adapter_that_was_not_asked_for_the_longest_makes_room(room_for: Make, shelf: Shelf) -> None:
    adapters = room_for(2)
    for source in ("a", "bb", "a", "ccc"):
        adapters.fetch([Lora(source)])
    assert adapters.sources == ("a", "ccc")
    assert adapters.nbytes == 2 * SIZE
    adapters.fetch([Lora("a")])
    assert shelf.reads == ["a", "bb", "ccc"], "what is remembered is not read again"


def test_adapters_of_requests_in_progress_are_not_let_go_of_and_who_needs_their_room_is_told(room_for: Make) -> None:
    adapters = room_for(1)
    worn = adapters.fetch([Lora("a")])
    with pytest.raises(CapacityError, match="those of requests in progress 256 bytes of 256 bytes"):
        adapters.fetch([Lora("bb")])
    del worn
    assert len(adapters.fetch([Lora("bb")])) == 1


def test_where_others_need_the_room_those_go_that_nobody_wears_and_what_they_take_stays_known(
    room_for: Make, shelf: Shelf
) -> None:
    adapters = room_for(4)
    worn = {each.adapter for each in adapters.fetch([Lora("a")])}
    for source in ("bb", "ccc", "./bb"):
        adapters.fetch([Lora(source)])
    adapters.within(2 * SIZE, worn)
    assert adapters.nbytes == 3 * SIZE and len(adapters.sources) == 4, "there is room for all"
    adapters.within(SIZE, worn)
    assert adapters.nbytes == 2 * SIZE and adapters.sources == ("a", "./bb")
    adapters.within(0, worn)
    assert adapters.nbytes == SIZE and adapters.sources == ("a",)
    known = adapters.sizes([Lora("a"), Lora("ccc"), Lora("bb", 0.0)])
    assert len(known) == 2 and set(known.values()) == {SIZE}
    assert shelf.reads == ["a", "bb", "ccc"]


def test_compiled_layers_keep_what_they_wear_joined_where_there_is_nothing_to_let_go_of(shelf: Shelf, net: Net) -> None:
    rack, site = Rack(), ("transformer", "layer")
    adapters = Adapters(partial(adapt, {site[0]: net}), shelf.read, shelf.stamp, limit=4 * SIZE, rack=rack)
    worn = adapters.fetch([Lora("a")])
    layer = net.get_submodule(site[1])
    assert isinstance(layer, Adapted)
    rack.compiled[site] = layer

    def joined(most: int) -> Joined | None:
        adapters.within(most, {each.adapter for each in worn})
        with adapters.wearing(worn), rack.joining():
            return layer.peg.joined

    first = joined(SIZE)
    assert first is not None
    assert joined(0) is first and joined(-SIZE) is first, "what is worn takes more than there is for what is not"
    adapters.fetch([Lora("bb")])
    assert joined(-SIZE) is not first, "who is let go of may be part of what was joined"


def test_sets_that_are_worn_in_turns_stay_joined_as_far_as_adapters_have_room(shelf: Shelf, net: Net) -> None:
    rack, site = Rack(), ("transformer", "layer")
    adapters = Adapters(partial(adapt, {site[0]: net}), shelf.read, shelf.stamp, limit=99 * SIZE, rack=rack)
    sets = [adapters.fetch([Lora("a")]), adapters.fetch([Lora("bb", 0.5)]), adapters.fetch([Lora("a"), Lora("bb")])]
    layer = net.get_submodule(site[1])
    assert isinstance(layer, Adapted)
    rack.compiled[site] = layer
    size = rack.joined_bytes(sets[0][0].adapter.products)

    def made(most: int | None, *turns: int, wanted: int = 2) -> list[Joined]:
        """What is joined for these sets, one after the other."""
        adapters.within(most, {each.adapter for each in sets[-1][:wanted]})
        found = list[Joined]()
        for turn in turns:
            with adapters.wearing(sets[turn]), rack.joining():
                assert layer.peg.joined is not None
                found.append(layer.peg.joined)
        return found

    first = made(None, 0, 1, 2)
    assert len({id(each) for each in first}) == 3
    assert all(ours is theirs for ours, theirs in zip(made(None, 0, 1, 2), first, strict=True))
    assert rack.nbytes == sum(tensor.nbytes for each in first for tensor in each)
    assert made(0, 0)[0] is first[0] and rack.nbytes == size, "one always stays"
    again = made(size, 0, 1, 0, 1, 0)
    assert again[0] is again[2] is again[4] and again[1] is again[3], "there is room for one more"
    turns = made(size, 0, 1, 2, 0, 1, 2)
    assert turns[0] is turns[3] is again[0] and turns[1] is not turns[4], "of three in turns one has it"
    rack.forget()
    again = made(size, 0, 1)
    assert made(SIZE + size, 0, wanted=1)[0] is again[0] and rack.nbytes == 2 * size, "nobody wants the other"
    assert made(SIZE, 0, wanted=1)[0] is again[0] and rack.nbytes == size
    assert made(None, 1, wanted=1)[0] is not again[1], "which goes where there is none"
    adapters.limit = adapters.nbytes + size - 1
    turns = made(None, 0, 1, 0, 1)
    assert turns[0] is not turns[2] and rack.nbytes == size, "no more than adapters may take"


def test_who_asks_for_what_is_worn_just_now_is_given_it_though_it_was_to_make_room(
    room_for: Make, shelf: Shelf
) -> None:
    adapters = room_for(1)
    [worn] = adapters.fetch([Lora("a")])
    with pytest.raises(CapacityError):
        adapters.fetch([Lora("bb")])
    [again] = adapters.fetch([Lora("a", 0.5)])
    assert again.adapter is worn.adapter and adapters.nbytes == SIZE
    assert shelf.reads == ["a"] and adapters.sources == ("a",)


def test_an_adapter_that_never_has_room_is_refused_before_it_is_read(room_for: Make, shelf: Shelf) -> None:
    with pytest.raises(RequestError, match="a takes 256 bytes, and adapters may take 0 bytes"):
        room_for(0).fetch([Lora("a")])
    assert not shelf.reads


def test_adapters_that_never_have_room_together_are_refused_together(room_for: Make, shelf: Shelf) -> None:
    adapters, both = room_for(1), [Lora("a"), Lora("bb")]
    for _ in range(2):
        with pytest.raises(RequestError, match=r"the 2 adapters take 512 bytes together, .* may take 256 bytes"):
            adapters.fetch(both)
    assert shelf.reads == ["a"], "and the second time none is read"
    with pytest.raises(RequestError, match="together"):
        adapters.refuse_too_many(both)
    adapters.refuse_too_many([Lora("a"), Lora("bb", 0.0)])
    shelf.versions["bb"] = 1  # what is there now may be smaller
    adapters.refuse_too_many(both)
    assert adapters.unread(both) == [Lora("bb")]


def test_an_adapter_counts_as_large_as_on_the_rank_that_has_most_of_it(room_for: Make) -> None:
    adapters, both = room_for(3), [Lora("a"), Lora("bb")]
    adapters.fetch(both)
    known = adapters.readings
    adapters.heed(both, [SIZE - 1, SIZE + 1])
    assert sorted(adapters.sizes(both).values()) == [SIZE, SIZE + 1] and adapters.readings == known + 1
    adapters.fetch(both)
    assert sorted(adapters.sizes(both).values()) == [SIZE, SIZE + 1]


def test_there_is_room_for_an_adapter_before_it_is_read(room_for: Make, shelf: Shelf) -> None:
    adapters, there = room_for(1), list[int]()
    shelf.watch = lambda: there.append(adapters.nbytes)
    for source in ("a", "bb"):
        adapters.fetch([Lora(source)])
    assert there == [0, 0]


def test_a_file_that_changed_is_read_again_and_its_rows_share_no_forward_with_the_old(
    room_for: Make, shelf: Shelf
) -> None:
    adapters = room_for(2)
    [old] = adapters.fetch([Lora("a")])
    shelf.versions["a"] = 1
    [new] = adapters.fetch([Lora("a")])
    assert shelf.reads == ["a", "a"]
    assert old.key != new.key


def test_a_file_under_two_names_is_read_once_and_not_worn_twice(room_for: Make, shelf: Shelf) -> None:
    adapters = room_for(1)
    [one], [other] = adapters.fetch([Lora("a")]), adapters.fetch([Lora("./a")])
    assert shelf.reads == ["a"] and one.key == other.key
    with pytest.raises(RequestError, match=r"a and \./a are one adapter; name it once, with one scale"):
        adapters.fetch([Lora("a"), Lora("./a", 0.5)])


def test_a_file_for_two_networks_is_two_adapters(room_for: Make, shelf: Shelf) -> None:
    adapters = room_for(2)
    asked = [Lora("a", 1.0, "transformer"), Lora("a", 0.5, "transformer_2")]
    one, other = adapters.fetch(asked)
    assert one.adapter is not other.adapter and one.key != other.key
    assert [each.adapter for each in adapters.fetch(asked)] == [one.adapter, other.adapter] and len(shelf.reads) == 2


def test_at_scale_0_an_adapter_is_not_even_read(room_for: Make, shelf: Shelf, net: Net) -> None:
    assert room_for(1).fetch([Lora("a", 0.0)]) == ()
    assert not shelf.reads
    assert not isinstance(net.layer, Adapted)


def test_where_nothing_can_be_worn_the_reason_is_told(net: Net, shelf: Shelf) -> None:
    adapters = Adapters(
        partial(adapt, {"transformer": net}), shelf.read, shelf.stamp, limit=SIZE, obstacle="blocks are compiled"
    )
    assert adapters.fetch(None) == ()
    with pytest.raises(RequestError, match="loras cannot be worn: blocks are compiled"):
        adapters.fetch([Lora("a")])
