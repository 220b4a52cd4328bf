"""One value from the wire, checked and turned into ours: numbers, words, flags, sizes.

Called by `translate/aliases.py` for every field it reads. Each refusal says what came, what is allowed and what to do.
Whether a value suits the model is not decided here but by `core/request.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from omnimuse.core.loras import MOST_LORAS
from omnimuse.server.errors import ApiError, refusal
from omnimuse.server.translate.field import Field

MAX_WHOLE = 10**40
"""Whole numbers beyond this (either way) are not even shown; far smaller ones are out of every range."""

MAX_REAL = 1.7e308
"""Larger numbers do not fit a float."""

MAX_URLS = 16
"""Pictures of one edit, as OpenAI has it."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_SIZE = re.compile(r"([0-9]{1,7}) ?[xX*\u00d7] ?([0-9]{1,7})")
ADJUST = "adjust"
"""In place of a size: `width`, `height` and frames become legal ones."""
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def read_value(field: Field, value: Any, name: str, form: bool) -> Any:
    """`value` of `field` in our terms. `name` is what the client called it; in a `form` scalars come as text."""
    return _READERS[field.shape](field, value, name, form)


def is_neutral(field: Field, value: Any, form: bool) -> bool:
    """Whether `value` of a field that is not honoured asks for nothing: no to it, or what is so anyway. JSON true is
    not 1.
    """
    if is_nothing(value) or (form and isinstance(value, str) and value.lower() == "false"):
        return True
    for neutral in field.neutral:
        if form and isinstance(value, str) and value.strip().lower() == json.dumps(neutral).strip('"').lower():
            return True
        if isinstance(value, bool) == isinstance(neutral, bool) and value == neutral:
            return True
    return False


def is_nothing(value: Any) -> bool:
    """Whether a JSON value says nothing, or no."""
    return value is None or value is False or value in ("", [], {})


def shown(value: Any) -> str:
    """`value` for a message, cut short."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_WHOLE:
        return "a number of too many digits"
    if isinstance(value, list | dict):
        return _beginning(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= 60 else text[:57] + "...") if isinstance(value, str) else text[:60]


def _beginning(value: list[Any] | dict[str, Any]) -> str:
    """The JSON of `value`, cut short: no more of it is written than is shown, for it may be large."""
    text = ""
    for piece in json.JSONEncoder(default=str, ensure_ascii=False).iterencode(value):
        text += piece[:61]
        if len(text) > 60:
            return text[:57] + "..."
    return text


def _bad(name: str, value: Any, allowed: str) -> ApiError:
    return refusal("invalid_value", f"{name}={shown(value)} is not allowed; use {allowed}", name)


def _text(field: Field, value: Any, name: str, form: bool) -> str:
    if not isinstance(value, str):
        raise _bad(name, value, "a string")
    if len(value) > field.longest:
        raise _bad(name, value, f"at most {field.longest} characters; it has {len(value)}")
    return value


def _whole(field: Field, value: Any, name: str, form: bool) -> int:
    is_text = form and isinstance(value, str) and _WHOLE.fullmatch(value.strip())
    if is_text or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WHOLE:
        raise _bad(name, value, f"a whole number{_range(field)}")
    _check_range(field, value, name)
    return value


def _real(field: Field, value: Any, name: str, form: bool) -> float:
    if form and isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value)
        except ValueError:
            raise _bad(name, value, f"a number{_range(field)}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_REAL or value != value:
        raise _bad(name, value, f"a number{_range(field)}")
    _check_range(field, value, name)
    return float(value)


def _check_range(field: Field, value: float, name: str) -> None:
    low = -math.inf if field.low is None else field.low
    high = math.inf if field.high is None else field.high
    if not low <= value <= high:
        raise _bad(name, value, f"a number{_range(field)}")


def _range(field: Field) -> str:
    if field.low is not None and field.high is not None:
        return f" from {field.low:g} to {field.high:g}"
    return f" of at least {field.low:g}" if field.low is not None else ""


def _deadline(field: Field, value: Any, name: str, form: bool) -> float | str:
    """Seconds, or a name; in a form what looks like a number is one."""
    if not isinstance(value, str):
        return _real(field, value, name, form)
    try:
        return float(value) if form and len(value) <= 40 else _text(field, value, name, form)
    except ValueError:
        return _text(field, value, name, form)


def _flag(field: Field, value: Any, name: str, form: bool) -> bool:
    if form and isinstance(value, str):
        value = _FLAGS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise _bad(name, value, "true or false")
    return value


def _choice(field: Field, value: Any, name: str, form: bool) -> str:
    word = value.lower() if isinstance(value, str) else None
    if word not in field.allowed:
        raise _bad(name, value, f"one of {', '.join(field.allowed)}")
    return word


def _seed(field: Field, value: Any, name: str, form: bool) -> int | None:
    """None where it is to be chosen."""
    seed = _whole(field, value, name, form)
    return None if seed == -1 else seed


def _size(field: Field, value: Any, name: str, form: bool) -> tuple[int, int] | str | None:
    """(width, height), None for the model's own size, or ADJUST."""
    if value == "auto":
        return None
    if value == ADJUST:
        return ADJUST
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _bad(name, value, '"auto" or WIDTHxHEIGHT in pixels, such as "1024x1024"')
    return int(match[1]), int(match[2])


def _resolution(field: Field, value: Any, name: str, form: bool) -> tuple[int, int] | str | None:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) is None:
        return _size(field, value, name, form)
    side = _whole(field, value, name, form)
    return side, side


def _background(field: Field, value: Any, name: str, form: bool) -> str | bool:
    """True and False say whether the request is a job; a word says what is behind the picture."""
    if isinstance(value, bool) or (form and isinstance(value, str) and value in _FLAGS):
        return _flag(field, value, name, form)
    if value == "transparent":
        raise refusal("unsupported_parameter", "this model draws opaque pictures; use background='opaque'", name)
    return _choice(field, value, name, form)


def _seconds(field: Field, value: Any, name: str, form: bool) -> float:
    """OpenAI clients send "4"; numbers are taken as well."""
    seconds = _real(field, value, name, form or isinstance(value, str))
    if seconds <= 0:
        raise _bad(name, value, "a number above 0")
    return seconds


def _object(field: Field, value: Any, name: str, form: bool) -> dict[str, Any]:
    if form and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _bad(name, value, "a JSON object") from None
    if not isinstance(value, dict):
        raise _bad(name, value, "an object")
    return value


def _list(field: Field, value: Any, name: str, form: bool) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(name, value, "a list")
    return value


def _texts(field: Field, value: Any, name: str, form: bool) -> tuple[str, ...]:
    """Texts, none of them empty; at most as many as the field's `high`."""
    found = [value] if isinstance(value, str) else value
    most = int(field.high or 1)
    if not isinstance(found, list) or len(found) > most or not all(isinstance(each, str) and each for each in found):
        raise _bad(name, value, f"a text that is not empty, or a list of at most {most} of them")
    return tuple(_text(field, each, name, form) for each in found)


def _one(field: Field, value: Any, name: str, form: bool) -> str:
    """A text, also as the only one of a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise _bad(name, value, "one text; tokens and several texts are not taken, send a request for each")
    return _text(field, value, name, form)


def _adapters(field: Field, value: Any, name: str, form: bool) -> list[Any] | None:
    """Adapters by their registered names; an empty list is to wear none. In a form scales come as text."""
    if value is None or value == "":
        return None
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | dict) for each in listed) or len(listed) > MOST_LORAS:
        raise _bad(name, value, f"a name, {{name, scale}}, or a list of at most {MOST_LORAS}")
    return [_scaled(name, each) if form and isinstance(each, dict) else each for each in listed]


def _scaled(name: str, given: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(given.get("scale"), str):
        return given
    try:
        return {**given, "scale": float(given["scale"])}
    except ValueError:
        raise _bad(f"{name}.scale", given["scale"], "a number") from None


def _urls(field: Field, value: Any, name: str, form: bool) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if len(found) > MAX_URLS or not all(isinstance(url, str) for url in found):
        raise _bad(name, value, f"a URL, or a list of URLs, at most {MAX_URLS}")
    return tuple(found)


def _picture(field: Field, value: Any, name: str, form: bool) -> tuple[str, ...]:
    """Where pictures are: a URL, an object that has it, or a list of either; uploads are not read here."""
    found = [_place(one) for one in (value if isinstance(value, list) else [value])]
    urls = [url for url in found if url is not None]
    if len(urls) != len(found) or len(urls) > MAX_URLS:
        how = f'an upload, a data: URL, {{"image_url": URL}}, or a list of at most {MAX_URLS} of them'
        raise _bad(name, value, how)
    return tuple(urls)


def _clip(field: Field, value: Any, name: str, form: bool) -> tuple[str, ...]:
    """Where a video is: a URL, or an object that has it; uploads are not read here."""
    url = _place(value, "video_url")
    if url is None:
        raise _bad(name, value, 'an upload, a URL, or {"video_url": URL}')
    return (url,)


def _place(given: Any, key: str = "image_url") -> str | None:
    """The URL in one value, whichever way it is given; None if there is none."""
    if isinstance(given, dict) and len(given) == 1 and (inner := given.get(key, given.get("url"))) is not None:
        given = inner.get("url") if isinstance(inner, dict) and len(inner) == 1 else inner
    return given if isinstance(given, str) and ":" in given[:10] else None


def _margins(field: Field, value: Any, name: str, form: bool) -> tuple[int, ...]:
    """Four whole numbers, in a list or as text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 4:
        raise _bad(name, value, 'four whole numbers: left, above, right, below, such as "64,0,64,0"')
    return tuple(_whole(field, part, name, form or isinstance(value, str)) for part in parts)


def _file(field: Field, value: Any, name: str, form: bool) -> str:
    raise _bad(name, value, "a multipart upload")


_READERS: dict[str, Callable[[Field, Any, str, bool], Any]] = {
    "text": _text,
    "whole": _whole,
    "real": _real,
    "flag": _flag,
    "choice": _choice,
    "size": _size,
    "resolution": _resolution,
    "background": _background,
    "seconds": _seconds,
    "object": _object,
    "any": lambda field, value, name, form: value,
    "list": _list,
    "file": _file,
    "urls": _urls,
    "picture": _picture,
    "clip": _clip,
    "margins": _margins,
    "seed": _seed,
    "adapters": _adapters,
    "texts": _texts,
    "one": _one,
    "deadline": _deadline,
}
