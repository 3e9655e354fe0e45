"""When what failed is tried again, and how long a turn may take. Pure."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import attrs
from durabletask.task import RetryPolicy

from dafx_actors._json.crossing import dump_error
from dafx_actors.errors import DafxError
from dafx_actors.exchange import Limits
from dafx_actors.transcript import Json

_LONGEST_PAUSE = timedelta(days=36_500)


_JITTER = 0.1
"""Of a pause, so that many turns that were refused together do not come again together."""


MODEL_RETRIES = RetryPolicy(
    first_retry_interval=timedelta(seconds=1),
    max_number_of_attempts=5,
    backoff_coefficient=2.0,
    max_retry_interval=timedelta(seconds=60),
    retry_timeout=timedelta(minutes=10),
)
"""How failed model calls are made again, unless the agent says otherwise."""


def pause_before(
    attempt: int, policy: RetryPolicy, waited: timedelta, seed: str, *, at_least: float | None = None
) -> timedelta | None:
    """The pause before an attempt is made again; None if it is not made again.

    Args:
        attempt: The number of the attempt that failed, from 1.
        policy: How often and when.
        waited: Since the first attempt was made.
        seed: Decides, the same at every replay, about the jitter.
        at_least: Seconds that the other side asked to wait (Retry-After).
    """
    if attempt >= policy.max_number_of_attempts:
        return None
    longest = policy.max_retry_interval or _LONGEST_PAUSE
    try:
        pause = min(policy.first_retry_interval * (policy.backoff_coefficient or 1.0) ** (attempt - 1), longest)
    except OverflowError:
        pause = longest
    share = int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:4], "big") / 2**32
    pause *= 1 + _JITTER * share
    if at_least is not None and at_least > 0:
        pause = max(pause, timedelta(seconds=min(at_least, _LONGEST_PAUSE.total_seconds())))
    if policy.retry_timeout is not None and waited + pause > policy.retry_timeout:
        return None
    return pause


def retry_note(step: int, attempt: int, error: DafxError) -> Json:
    """An attempt that is made again, for the turn's record."""
    said = dump_error(error)
    return {"step": step, "attempt": attempt, "error": said["type"], "message": said["message"]}


def seconds_at_most(limits: Limits, deadline: float | None) -> Limits:
    """The limits of a turn that has a deadline besides."""
    bounds = [seconds for seconds in (limits.seconds, deadline) if seconds is not None]
    return attrs.evolve(limits, seconds=min(bounds, default=None))
