"""How often an orchestration that waits for many answers is told of those that have come. Pure.

Each episode replays all that was before it. Told of each answer at once, one that waits for a thousand would replay a
thousand histories, and the others would wait meanwhile. So after an episode it rests as long as that took, and is told
of all that has come then; half of its time at most is spent on replays. The last answers come without a rest, and one
that waits for little never rests.
"""

from __future__ import annotations

import attrs

MANY = 4
"""Answers that are still to come."""
LONGEST = 0.1
"""Seconds of rest; what is not an answer waits as well."""


@attrs.define
class Pace:
    """Of one orchestration; nothing of it is stored."""

    awaited: int = 0
    """How many activities and children have not answered."""
    given: float = 0.0
    """When its episode was given to a worker; by a clock that is never set, in seconds."""
    rests_until: float = 0.0

    def turned(self, now: float) -> None:
        """Its episode was answered."""
        self.rests_until = now + min(now - self.given, LONGEST)

    def answered(self) -> None:
        """One that it waits for has answered; of those from before a restart nobody knows."""
        self.awaited = max(self.awaited - 1, 0)

    def rest(self, now: float) -> float:
        """Seconds until its next episode may be given."""
        return max(self.rests_until - now, 0.0) if self.awaited >= MANY else 0.0
