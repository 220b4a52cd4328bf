"""What the front makes of what pools say of a request."""

from __future__ import annotations

from unittest import mock

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.deploy.foretelling import _way
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
