"""The last line behind all work: an answer that cannot be made, or that the scheduler does not take, becomes a failure.

Work without an answer is handed out again, and what it does would be done again without end. So what durabletask's own
code raises is told as the failure of its work; and of an answer that is larger than a message may be, which only the
scheduler's refusal tells, its name, its size and the bound. What is recorded holds no secret of this program's.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
from durabletask.internal import helpers
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from dafx_actors import _secrets
from dafx_actors._durable import calls as _calls
from dafx_actors._json.crossing import dump_error
from dafx_actors._raised import kind_of, text_of
from dafx_actors.errors import MessageTooLarge


def is_too_large(error: grpc.RpcError) -> bool:
    """Say whether a call failed because a message is larger than this side, or the other, takes."""
    return _calls.is_too_large(_details(error))


def limit_in(error: grpc.RpcError) -> int | None:
    """The bound in bytes; None if the refusal does not name it."""
    return _calls.limit_in(_details(error))


def _details(error: Any) -> str:
    return str(error.details() or "") if hasattr(error, "details") else ""


class Answering:
    """The stub by which durabletask answers a piece of work. An answer that is too large is replaced by a failure.

    `send` is a line's stub.
    """

    def __init__(self, send: Any, request: Any, token: str) -> None:
        self._send = send
        self._request = request
        self._token = token

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        return functools.partial(getattr(self._send, name), instead=self._instead)

    def _instead(self, size: int, limit: int | None) -> Any:
        too_large = dump_error(MessageTooLarge(_name_of(self._request), size, limit))
        kind = f"{MessageTooLarge.__module__}.{MessageTooLarge.__qualname__}"
        # As JSON, so that it is rebuilt where it is awaited, as other typed errors are.
        details = pb.TaskFailureDetails(errorType=kind, errorMessage=json.dumps(too_large), isNonRetriable=True)
        return failed(self._request, self._token, details)


def details_of(error: BaseException) -> pb.TaskFailureDetails:
    """Any error as durabletask records it, without what led to it."""
    return pb.TaskFailureDetails(errorType=f"builtins.{kind_of(error)}", errorMessage=text_of(error))


def failed(request: Any, token: str, details: pb.TaskFailureDetails) -> Any:
    """The answer that a piece of work has failed; of a batch of operations, all, with the state as it was.

    Args:
        request: The work, a message of the protocol.
        token: Under which it came.
        details: Why.
    """
    if isinstance(request, pb.ActivityRequest):
        return pb.ActivityResponse(
            instanceId=request.orchestrationInstance.instanceId,
            taskId=request.taskId,
            failureDetails=details,
            completionToken=token,
        )
    if isinstance(request, pb.OrchestratorRequest):
        ends = helpers.new_complete_orchestration_action(-1, pb.ORCHESTRATION_STATUS_FAILED, "", details)
        return pb.OrchestratorResponse(instanceId=request.instanceId, actions=[ends], completionToken=token)
    infos: list[pb.OperationInfo] = []
    if isinstance(request, pb.EntityRequest):
        request, infos = helpers.convert_to_entity_batch_request(request)
    now = Timestamp()
    now.FromDatetime(datetime.now(UTC))
    failure = pb.OperationResultFailure(failureDetails=details, startTimeUtc=now, endTimeUtc=now)
    return pb.EntityBatchResult(
        results=[pb.OperationResult(failure=failure) for _ in request.operations],
        entityState=request.entityState if request.HasField("entityState") else None,
        completionToken=token,
        operationInfos=infos,
    )


def without_secrets(answer: Any) -> Any:
    """An answer, a message of the protocol, without secrets in what it has recorded: itself, changed where need be."""
    if _secrets.are_known() and _secrets.is_in(answer.SerializeToString()):
        _clean(answer)
    return answer


def _clean(message: Any) -> None:
    """What is recorded of users' values is in optional texts; plain ones are names, but for what an error says."""
    for field, value in message.ListFields():
        if field.name == "errorMessage":
            message.errorMessage = _secrets.without_in_data(value)
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        elif field.message_type.full_name == "google.protobuf.StringValue":
            value.value = _secrets.without_in_data(value.value)
        elif hasattr(value, "ListFields"):
            _clean(value)
        else:
            for each in value:
                _clean(each)


def _name_of(request: Any) -> str:
    if isinstance(request, pb.ActivityRequest):
        return f"activity {request.name!r}"
    if isinstance(request, pb.OrchestratorRequest):
        events = itertools.chain(request.pastEvents, request.newEvents)
        names = [event.executionStarted.name for event in events if event.HasField("executionStarted")]
        return f"orchestration {names[0] if names else request.instanceId!r}"
    return f"entity {request.instanceId!r}, with its state"
