"""The two calls with which a site signs in: see `transport.sign_in`. Whoever makes them is not known yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from privacy.errors import AuthenticityError, CloisterError, MalformedError
from privacy.failures import sentence
from server.hub.ports import refuse
from transport.sign_in import carried

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.hub.sessions import Sessions

    Context = grpc.aio.ServicerContext[Any, Any]


def signing_in(sessions: Sessions) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Return what answers both calls, by name. As streams, so that gRPC reads nothing of what a stranger sends."""

    def answering(answer: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(_: object, context: Context) -> bytes:
            try:
                return answer(carried(context.invocation_metadata()))
            except (CloisterError, OSError) as error:
                await refuse(context, _code(error), sentence(error))

        return grpc.stream_unary_rpc_method_handler(call, request_deserializer=None, response_serializer=None)

    return {"Challenge": answering(sessions.challenge), "SignIn": answering(sessions.sign_in)}


def _code(error: Exception) -> grpc.StatusCode:
    match error:
        case AuthenticityError():
            return grpc.StatusCode.PERMISSION_DENIED
        case MalformedError():
            return grpc.StatusCode.INVALID_ARGUMENT
    return grpc.StatusCode.ABORTED  # the site tries again
