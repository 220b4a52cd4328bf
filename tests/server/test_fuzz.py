"""Requests made up from our own description of the interface, good and bad: none may make the server fail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.picture_server import picture_server

if TYPE_CHECKING:
    import schemathesis

EXAMPLES = 25  # of each operation
LATE = {"deadline_exceeded", "deadline_unreachable"}
"""What a request that asks for an impossible deadline is rightly told."""
BY_HAND = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.costly  # what is made up is the same every time
@pytest.mark.filterwarnings("default")  # of the libraries that make up requests
def test_no_request_makes_the_server_fail(tmp_path: Path) -> None:
    import schemathesis  # takes seconds, of which all processes that collect this file would have their own

    with picture_server(tmp_path) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) > 15
        for operation in operations:

            @BY_HAND
            @given(case=operation.as_strategy())
            def no_failure(case: schemathesis.Case) -> None:
                response = case.call(timeout=30)
                assert response.headers.get("x-request-id")
                if response.status_code >= 400:
                    error = response.json()["error"]
                    assert set(error) == {"message", "type", "param", "code"}
                    assert response.status_code < 500 or error["code"] in LATE, (case.as_curl_command(), error)

            no_failure()
