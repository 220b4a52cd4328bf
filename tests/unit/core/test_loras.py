"""What people write for adapters, and what is said of what makes no sense."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Lora, component_of, loras_of, told


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("style.safetensors", (Lora("style.safetensors", 1.0),)),
        ("style.safetensors:0.8", (Lora("style.safetensors", 0.8),)),
        (["a:-1e-1", "b:.5"], (Lora("a", -0.1), Lora("b", 0.5))),
        ("C:/styles/a.safetensors", (Lora("C:/styles/a.safetensors"),)),
        ("D:/styles/ink", (Lora("D:/styles/ink"),)),
        ([{"path": "a", "scale": 2}], (Lora("a", 2.0),)),
        ([{"name": "a"}, Lora("b", 0.0)], (Lora("a"), Lora("b", 0.0))),
        (Path("a:0.8"), (Lora("a:0.8"),)),
        ([Path("a"), {"path": Path("b"), "scale": 2}], (Lora("a"), Lora("b", 2.0))),
        ("transformer_2=low.safetensors:0.8", (Lora("low.safetensors", 0.8, "transformer_2"),)),
        ("of=one.safetensors", (Lora("of=one.safetensors"),)),
        (["a", "transformer=a:2"], (Lora("a"), Lora("a", 2.0, "transformer"))),
        ([{"path": "a", "component": "transformer_2"}], (Lora("a", 1.0, "transformer_2"),)),
        ([f"{number}:-100" for number in range(16)], tuple(Lora(f"{number}", -100.0) for number in range(16))),
        ([], None),
        (None, None),
    ],
)
def test_an_adapter_is_written_as_a_text_a_path_a_dict_or_a_lora(given: Any, found: Any) -> None:
    assert loras_of(given) == found
    assert loras_of(found) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "must be a list of adapters, got int"),
        ([7], "a file's name, or a dict of path and scale, got 7"),
        ([""], "names no adapter"),
        (["a\0b"], "names no adapter"),
        (["a:nan"], "the scale nan of a is not allowed; use a number from -100 to 100"),
        ([{"path": "a", "scale": True}], "the scale True"),
        ([{"path": "a", "scale": 10**350}], "the scale 10000"),
        ([{"path": "a", "scale": "0.5"}], "the scale '0.5'"),
        ([{"path": "a", "component": "vae"}], "the component 'vae' of a is none that adapters are for"),
        ([{"path": "a", "component": 2}], "the component 2 of a"),
        (["transformer_2="], "names no adapter"),
        (["transformer=a", "transformer=a:2"], "has 'a' more than once"),
        ([Lora("a", math.inf)], "the scale inf"),
        (["a:101"], "the scale 101.0"),
        (["omnimuse/shapes/night:lots"], "the scale 'lots' of omnimuse/shapes/night is no number; write it like"),
        (["style.safetensors:0,8"], "the scale '0,8' of style.safetensors is no number"),
        (["a:"], "the scale '' of a is no number"),
        ([{"path": "a", "weight": 1}], "has the field 'weight'"),
        ([{"path": "a", "name": "b"}], "has path and name"),
        ([{"scale": 1}], "has no path"),
        (["a:0.5", "a"], "has 'a' more than once"),
        (["a"] * 17, "17 adapters were asked for; use at most 16"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_field(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        loras_of(given)
    assert caught.value.param == "loras"


def test_a_target_of_sglang_is_the_component_of_that_name() -> None:
    found = {target: component_of(target) for target in (None, "all", "transformer", "transformer_2")}
    assert found == {None: "", "all": "", "transformer": "transformer", "transformer_2": "transformer_2"}
    for target in ("", "vae", "transformer_22"):
        with pytest.raises(RequestError, match="use all, transformer or transformer_2") as caught:
            component_of(target)
        assert caught.value.param == "target"


def test_a_registered_name_may_have_a_colon_at_its_end() -> None:
    assert loras_of(["ink:wet", "ink:wet2:0.5"], {"ink:wet": "a", "ink:wet2": "b"}) == (Lora("a"), Lora("b", 0.5))


def test_of_a_file_only_the_last_part_of_its_name_is_told() -> None:
    about = {"name": "a.safetensors", "scale": 0.5}
    assert told([Lora("/home/somebody/a.safetensors", 0.5)]) == [about]
    assert told([Lora("omnimuse/shapes/night", 0.5)]) == [{"name": "omnimuse/shapes/night", "scale": 0.5}]
    for lora in (Lora("a"), Lora("a:b/c", 0.3, "transformer_2"), Lora("omnimuse/shapes/night", -1e-3)):
        assert loras_of(str(lora)) == (lora,)
    found = told([Lora("/home/somebody/a.safetensors", 0.5, "transformer_2")])
    assert found == [{**about, "component": "transformer_2"}] and loras_of(found) == (
        Lora("a.safetensors", 0.5, "transformer_2"),
    )
