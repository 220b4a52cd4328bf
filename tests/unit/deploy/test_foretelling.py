"""What the front makes of what pools say of a request."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from omnimuse.core.errors import EngineDeadError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.deploy.foretelling import Foretelling, _way
from omnimuse.deploy.frames import Way, Weighed
from omnimuse.deploy.group import Seat

SEAT = mock.Mock(spec=Seat)


def test_what_a_pool_refuses_of_which_it_knows_nothing_is_tried_before_anything_is_named() -> None:
    known, unknown = Way(0, False, 0, "takes much", "max_tokens", 484), Way(0, True, 0, "is wide", "max_tokens", 1301)
    assert _way([(SEAT, Weighed("", [known])), (SEAT, Weighed("", [unknown]))]) == Way(0, True)
    with pytest.raises(RequestError, match="takes much"):
        _way([(SEAT, Weighed("", [known])), (SEAT, Weighed("", [Way(0, False)]))])


def test_the_first_tiles_are_taken_for_which_all_pools_have_room() -> None:
    one = Weighed("", [Way(0, False, 9, "too much"), Way(128, False), Way(64, False, 5)])
    other = Weighed("", [Way(0, False), Way(128, False, 0, "too much"), Way(64, False, 7)])
    assert _way([(SEAT, one), (SEAT, other)]) == Way(64, False, 7), "the pool that needs most"


def test_what_is_set_while_a_pool_ends_is_refused_as_nobody_knows_whether_it_can_be_worn() -> None:
    seat = mock.Mock(spec=Seat)
    foretelling = Foretelling(lambda: [[seat]], lambda: None)
    seat.link.send.side_effect = lambda frame: foretelling.lost(seat)

    async def set_it() -> None:
        with pytest.raises(EngineDeadError, match="ended while it read them; try again in a moment"):
            await asyncio.wait_for(foretelling.try_on([Lora("ink")]), 5)

    asyncio.run(set_it())


def test_what_is_set_while_a_pool_has_no_process_is_refused_at_once() -> None:
    there, gone = mock.Mock(spec=Seat, link=mock.Mock()), mock.Mock(spec=Seat, link=None)

    async def set_it() -> None:
        with pytest.raises(EngineDeadError, match="a pool has no process that is ready; try again in a moment"):
            await asyncio.wait_for(Foretelling(lambda: [[there], [gone]], lambda: None).try_on([Lora("ink")]), 5)

    asyncio.run(set_it())
