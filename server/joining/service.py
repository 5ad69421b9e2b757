"""Joining over gRPC, at the port to which sites whose TLS is ended on the way connect: see `transport.joining`.

What passes is the same as at the joining port, cut into calls. The proxy that ends TLS sees all of it: no secret of the
invitation, no private key. A site compares the authority with its invitation, and the authority signs the welcome.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from privacy.errors import CloisterError
from privacy.failures import sentence
from privacy.run.enrolment import LARGEST_REQUEST
from privacy.run.invitation import PROOF_BYTES
from server.hub.ports import refuse
from server.joining.requests import log_answer
from transport import cloister_pb2 as pb
from transport.channel import JOINING
from transport.framing import to_frames
from transport.joining import greeting
from transport.pki import read_certificate
from transport.sign_in import carried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from privacy.run.invitation import InvitationRecord
    from server.joining.requests import Requests
    from transport.channel import TlsFiles
    from transport.joining import Standing

    Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")
log = logging.getLogger("cloister.joining")

_AT_ONCE = 4
_SECONDS = 60.0  # for a request and its answer


class JoiningService:
    """Serves requests to join, a few at a time."""

    def __init__(self, requests: Requests, tls: TlsFiles) -> None:
        self._requests, self._tls = requests, tls
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @property
    def handlers(self) -> grpc.GenericRpcHandler:
        """What answers its calls."""
        return grpc.method_handlers_generic_handler(JOINING, {
            "Standing": grpc.stream_unary_rpc_method_handler(
                self._standing, request_deserializer=None, response_serializer=None
            ),
            "Ask": grpc.stream_stream_rpc_method_handler(
                self._ask, request_deserializer=None, response_serializer=pb.Chunk.SerializeToString
            ),
        })  # fmt: skip

    async def _standing(self, _: object, context: Context) -> bytes:
        """Return the authority's certificate, and what has become of the invitation that a proof belongs to."""
        standing, _ = await self._invited(context)
        try:
            return greeting(read_certificate(self._tls.authority).public_bytes(Encoding.DER)) + standing.to_bytes()
        except CloisterError as error:
            await self._fail(error, context)

    async def _ask(self, messages: AsyncIterator[bytes], context: Context) -> None:
        """Send what a request gets, which is read only if a proof comes with it."""
        standing, invited = await self._invited(context)
        if invited is None:
            msg = f"this invitation is {standing.state.name.lower()}"
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, msg)
        try:
            async with asyncio.timeout(_SECONDS):
                data = await anext(aiter(messages), b"")
                if len(data) > LARGEST_REQUEST:
                    await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "this is no request to join")
                answer = await self._in_turn(self._requests.answer, invited, data)
                log_answer(answer, invited.name, context.peer())
                for frame in to_frames((answer.to_bytes(),)):
                    await context.write(frame)
        except TimeoutError:
            await refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the request and its answer took too long")

    async def _invited(self, context: Context) -> tuple[Standing, InvitationRecord | None]:
        """Return the state of the invitation whose proof comes with a call, and its record if a request may follow."""
        proof = carried(context.invocation_metadata())
        if len(proof) != PROOF_BYTES:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "this is no proof of an invitation")
        try:
            return await self._in_turn(self._requests.standing, proof)
        except (CloisterError, OSError) as error:
            await self._fail(error, context)

    async def _in_turn(self, work: Callable[..., T], *arguments: object) -> T:
        async with self._turns:
            return await asyncio.to_thread(work, *arguments)

    @staticmethod
    async def _fail(error: Exception, context: Context) -> NoReturn:
        log.warning("a request to join from %s failed: %s", context.peer(), sentence(error))
        await refuse(context, grpc.StatusCode.UNAVAILABLE, "the server cannot answer now; tell the coordinator")
