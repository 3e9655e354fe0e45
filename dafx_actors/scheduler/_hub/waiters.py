"""Clients that wait until an orchestration has started, or ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from dafx_actors.scheduler._ground.proto import Status

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import Orchestration


@attrs.define(eq=False)
class _Waiter:
    ended: bool
    """Waits for the end, else for the start."""
    done: asyncio.Future[Orchestration]


class Waiters:
    """Of one task hub, by the instance ids that they wait for."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[_Waiter]] = {}
        self._is_silent = False

    async def wait(self, instance_id: str, *, ended: bool) -> Orchestration:
        """Wait until an orchestration is told of that has started, or ended; it need not exist yet."""
        waiter = _Waiter(ended, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(instance_id, []).append(waiter)
        try:
            return await waiter.done
        finally:
            others = self._waiters.get(instance_id)
            if others is not None and waiter in others:
                others.remove(waiter)
                if not others:
                    del self._waiters[instance_id]

    def notify(self, it: Orchestration) -> None:
        """The status of an orchestration is on disk: tell those who waited for that."""
        waiters = self._waiters.get(it.instance_id)
        if waiters is None or it.gone or self._is_silent:
            return
        for waiter in waiters:
            if reached(it, ended=waiter.ended) and not waiter.done.done():
                waiter.done.set_result(it)

    def stop(self, error: Exception) -> None:
        """Let nobody wait any longer."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done.done():
                    waiter.done.set_exception(error)

    def silence(self, silent: bool) -> None:
        """Tell nobody anything meanwhile: what is in memory cannot be trusted."""
        self._is_silent = silent

    @property
    def instance_ids(self) -> list[str]:
        """What somebody waits for."""
        return list(self._waiters)

    def __len__(self) -> int:
        return sum(map(len, self._waiters.values()))


def reached(it: Orchestration, *, ended: bool) -> bool:
    """Whether an orchestration has started, or ended."""
    return it.ended if ended else it.status != Status.PENDING
