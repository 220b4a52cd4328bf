"""Answers of a chat that come with a picture: where one is wanted, and how it is told, as `chat.py` tells pictures.

Part of `talk.py`, and of `chat.py` what is told of pictures that are not finished yet.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import BinaryIO

from omnimuse.deploy.wire import MadeFile, Previewed
from omnimuse.media.formats import PICTURES, TEXT
from omnimuse.server.orders.order import Order
from omnimuse.server.protocol.chat import ImagePart, ImageUrl
from omnimuse.server.translate.answers import encoded
from omnimuse.server.translate.asks import preview_steps

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
        url = ImageUrl(url=f"data:{_media(file)};base64,{word}")
        found[outputs[file.seed]] = [ImagePart(image_url=url, index=0, seed=file.seed)]
    return found


def data_url(made: MadeFile, file: BinaryIO) -> str:
    """The picture in `file`, within an address."""
    return f"data:{_media(made)};base64,{base64.b64encode(file.read()).decode()}"


def _media(made: MadeFile) -> str:
    return _MEDIA[made.name.rpartition(".")[2].upper()]


class Looks:
    """The looks at unfinished pictures that a stream was asked for, each once, though a request be made twice."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._steps = preview_steps(order.request.evaluations, order.wanted.delivery.partial_images)
        self._seen = set[tuple[int, int]]()

    def new(self, update: Previewed) -> list[ImagePart]:
        """How `update` is told; nothing if it was not asked for, or has been told."""
        key = (update.output, update.step)
        if update.step not in self._steps or key in self._seen:
            return []
        self._seen.add(key)
        url = ImageUrl(url=f"data:image/jpeg;base64,{encoded(update.picture)}")
        seed = self._order.request.seed(update.output)
        return [ImagePart(image_url=url, index=update.output, seed=seed, step=update.step)]
