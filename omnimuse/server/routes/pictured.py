"""Answers of a chat that come with a picture: where one is wanted, and how it is told, as `chat.py` tells pictures.

Part of `talk.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnimuse.deploy.wire import MadeFile
from omnimuse.media.formats import PICTURES, TEXT
from omnimuse.server.orders.order import Order
from omnimuse.server.protocol.chat import ImagePart, ImageUrl

BOTH = ["image", "text"]
_MEDIA = {format_: f"image/{format_.lower()}" for format_ in PICTURES.values()}


def wants(order: Order) -> bool:
    """Whether files beside the texts are pictures that the client wants; with `modalities` ["text"] it does not."""
    return order.form.format == TEXT and order.wanted.talk.modalities != ["text"]


def pictures(order: Order, files: Sequence[MadeFile], words: Sequence[str]) -> dict[int, list[ImagePart]]:
    """The picture of every answer that has one; `words` stand for what is in `files`."""
    outputs = {order.request.seed(index): index for index in range(order.request.outputs)}
    found = dict[int, list[ImagePart]]()
    for file, word in zip(files, words, strict=True):
        media = _MEDIA[file.name.rpartition(".")[2].upper()]
        url = ImageUrl(url=f"data:{media};base64,{word}")
        found[outputs[file.seed]] = [ImagePart(image_url=url, index=0, seed=file.seed)]
    return found
