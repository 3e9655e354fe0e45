"""What Retry-After says, in all its forms; which failures are what is in `test_openai_failures.py`."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from dafx_actors.models._failures import failure, retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:05:05 GMT"}, 60.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:05:05 -0000"}, 60.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "2", "retry-after-ms": "1250"}, 1.25),
        ({"retry-after": "2", "retry-after-ms": "soon"}, 2.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, an HTTP date, or milliseconds, which are more exact; nonsense is as if unsaid."""
    assert retry_after(headers, NOW) == seconds


def test_long_error_page_is_cut() -> None:
    """A proxy's page is no message to record whole."""
    assert len(failure(502, "<html>" * 10_000, message="", headers={}, now=NOW).message) == 2000


def test_status_that_nobody_knows() -> None:
    """New statuses go by their hundreds."""
    kinds = [failure(status, None, message="m", headers={}, now=NOW).kind for status in (599, 418, 304)]
    assert kinds == ["server_error", "bad_request", "error"]
