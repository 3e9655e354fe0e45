"""Who this program is to a deployed scheduler: credentials of azure-identity.

Always the synchronous ones, on a thread where the caller must not wait: the asynchronous ones need aiohttp, which
azure-identity does not bring along. A token is kept for about an hour, so that the thread costs nothing that counts.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
import attrs

from dafx_actors._durable.outages import one_line
from dafx_actors.errors import ConfigurationError, SchedulerCredentialError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential


def default_credential() -> Any:
    """Azure's `DefaultAzureCredential`: the environment, a workload's or a managed identity, Azure CLI and so on.

    Raises:
        ConfigurationError: A variable of azure-identity's own is wrong.
    """
    from azure.identity import DefaultAzureCredential

    try:
        return DefaultAzureCredential()
    except ValueError as error:
        raise ConfigurationError(f"azure-identity cannot be used as it is set up: {error}") from error


class OwnCredential:
    """The default credential, made anew in a process that was forked: it keeps connections of its own."""

    def __init__(self) -> None:
        """Make it.

        Raises:
            ConfigurationError: As of `default_credential`.
        """
        self._process, self._made = os.getpid(), default_credential()

    def get_token(self, *scopes: str, **how: Any) -> Any:
        """A token, as azure-identity gives it."""
        if self._process != os.getpid():
            self._process, self._made = os.getpid(), default_credential()
        return self._made.get_token(*scopes, **how)

    def close(self) -> None:
        """Give back what it holds."""
        self._made.close()


def scope_of_schedulers() -> str:
    """What a token is asked for, as durabletask asks."""
    from durabletask.azuremanaged.internal.access_token_manager import resolve_resource_id

    return f"{resolve_resource_id(None)}/.default"


def credential_error(error: BaseException, endpoint: str) -> SchedulerCredentialError | None:
    """What is raised for an error of azure-identity; None where `error` is something else."""
    exceptions: Any = sys.modules.get("azure.core.exceptions")  # nobody raises them who has not imported them
    if isinstance(error, SchedulerCredentialError):
        return error
    if exceptions is None or not isinstance(error, exceptions.AzureError):
        return None
    return SchedulerCredentialError(endpoint, one_line(str(error)))


def on_thread(credential: Any) -> AsyncTokenCredential:
    """A credential, synchronous or not, as an asynchronous one that never holds the event loop up."""
    return cast("AsyncTokenCredential", _OnThread(credential))  # a protocol with more than is asked of it


@attrs.frozen
class _OnThread:
    credential: Any

    async def get_token(self, *scopes: str, **how: Any) -> Any:
        get_token = functools.partial(self.credential.get_token, *scopes, **how)
        # It may take many seconds, and leaves nothing behind that a cancelled caller would have to wait for.
        token = await anyio.to_thread.run_sync(get_token, abandon_on_cancel=True)
        return await token if inspect.isawaitable(token) else token


def check(credential: Any, endpoint: str) -> None:
    """See that there is a token, on this thread.

    Raises:
        SchedulerCredentialError: There is none.
        ConfigurationError: The credential is one for asyncio.
    """
    try:
        token = credential.get_token(scope_of_schedulers())
    except Exception as error:
        if (known := credential_error(error, endpoint)) is not None:
            raise known from error
        raise
    if inspect.iscoroutine(token):
        token.close()
        raise ConfigurationError(
            "A worker wants a synchronous credential, such as azure.identity.DefaultAzureCredential, not "
            f"{type(credential).__module__}.{type(credential).__qualname__}"
        )


async def close(credential: Any) -> None:
    """Close a credential that was made here."""
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(credential.close)
