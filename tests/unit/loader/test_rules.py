"""Names through `Rename` and `Fuse`, and the plan made of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omnimuse.loader.plan import Piece, plan_load
from omnimuse.loader.rules import Drop, Fuse, Rename, Translate, apply_rules, joined

QKV = Fuse(("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"), "attn.qkv.weight")


def test_renames_act_in_order_each_on_what_the_one_before_made() -> None:
    rules = (Rename(r"^a\.", "b."), Rename(r"^b\.(\d+)", r"c.\1.x"))
    assert apply_rules("a.3.w", rules).name == "c.3.x.w"
    assert apply_rules("z.a.w", rules).name == "z.a.w"


def test_a_fuse_keeps_what_stands_before_the_part() -> None:
    target = apply_rules("blocks.7.attn.to_k.weight", (QKV,))
    assert (target.name, target.part, target.prefix) == ("blocks.7.attn.qkv.weight", 1, "blocks.7.")
    assert apply_rules("attn.to_v.weight", (QKV,)).name == "attn.qkv.weight"


def test_layers_that_are_joined_are_so_with_weights_and_biases_or_those_of_some_kind() -> None:
    found = [apply_rules(f"b.attn.to_v.{kind}", joined("attn.to_*", "qkv", "attn.qkv")) for kind in ("weight", "bias")]
    assert [(each.name, each.part) for each in found] == [("b.attn.qkv.weight", 2), ("b.attn.qkv.bias", 2)]
    assert joined("norm_*", "qk", "norm_qk", kinds=("weight",)) == (
        Fuse(("norm_q.weight", "norm_k.weight"), "norm_qk.weight"),
    )


def test_a_part_matches_whole_pieces_of_a_name_only() -> None:
    assert apply_rules("blocks.7.cross_attn.to_k.weight", (QKV,)).fuse is None
    assert apply_rules("blocks.7.attn.to_k.weight_scale", (QKV,)).fuse is None


def test_a_rename_before_a_fuse_feeds_it_and_one_after_it_renames_the_whole() -> None:
    rules = (Rename("attention", "attn"), QKV, Rename("qkv", "in_proj"))
    target = apply_rules("x.attention.to_q.weight", rules)
    assert (target.name, target.part) == ("x.attn.in_proj.weight", 0)


def test_a_dropped_tensor_is_neither_read_nor_unexpected() -> None:
    stored = {"a.w": (2,), "head.w": (3,), "x.head.w": (3,)}
    made = plan_load(stored, {"a.w": (2,)}, {"a.w": "a.w"}, (Drop(r"^head\."),))
    assert set(made.pieces) == {"a.w"}
    assert made.differences.unexpected == ("x.head.w",)


def test_what_a_translation_leaves_out_no_later_rule_brings_back_and_what_it_names_goes_on() -> None:
    rules = (Translate({"a.w": "b.w", "head.w": ""}.__getitem__), Rename("^", "net."))
    assert [apply_rules(name, rules).name for name in ("a.w", "head.w")] == ["net.b.w", ""]


def plan(stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], *rules: Rename | Fuse):  # type: ignore[no-untyped-def]
    return plan_load(stored, wanted, {name: name for name in wanted}, rules)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.permutations((0, 1, 2)))
def test_parts_lie_end_to_end_in_the_order_of_the_rule_whatever_the_order_in_the_file(sizes, order) -> None:  # type: ignore[no-untyped-def]
    names = [f"b.{part}" for part in QKV.parts]
    made = plan({names[i]: (sizes[i], 5) for i in order}, {"b.attn.qkv.weight": (sum(sizes), 5)}, QKV)
    assert not made.differences
    assert [made.pieces[name] for name in names] == [
        Piece("b.attn.qkv.weight", 0, sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(3)
    ]


def test_an_absent_part_is_missing_by_its_own_name() -> None:
    made = plan({"b.attn.to_q.weight": (2, 5)}, {"b.attn.qkv.weight": (6, 5)}, QKV)
    assert made.missing == [f"b.attn.to_{x}.weight (part of b.attn.qkv.weight)" for x in "kv"]


def test_parts_of_the_wrong_size_are_reported_together() -> None:
    stored = {f"attn.to_{x}.weight": (3, 5) for x in "qkv"}
    made = plan(stored, {"attn.qkv.weight": (6, 5)}, QKV)
    assert made.misshaped == [("attn.to_q.weight + attn.to_k.weight + attn.to_v.weight", (6, 5), (9, 5))]


def test_two_tensors_for_one_place_are_refused() -> None:
    made = plan({"a": (1,), "b": (1,)}, {"c": (1,)}, Rename("^[ab]$", "c"))
    assert made.differences.unexpected == ("b (goes to c, as a does)",)


def test_one_name_of_a_tied_tensor_is_enough() -> None:
    wanted = {"embed": (4, 2), "head": (4, 2)}
    ties = {"embed": "embed", "head": "embed"}
    assert not plan_load({"head": (4, 2)}, wanted, ties, ()).differences
    assert plan_load({}, wanted, ties, ()).missing == ["embed"]
