"""Ask a running server over gRPC to let a site or a person join, where TLS is ended on the way."""

from __future__ import annotations

import io
from hashlib import sha256
from typing import TYPE_CHECKING

import grpc

from client.session import BY_A_PROXY
from privacy.errors import AuthenticityError, UnreachableError
from privacy.untrusted_text import quoted
from transport import cloister_pb2 as pb
from transport.address import read_address
from transport.channel import JOINING, open_ended_channel, probe_ended
from transport.framing import assemble
from transport.joining import LARGEST_ANSWER, open_standing, read_answer, read_greeting, read_standing
from transport.proxies import proxy_for
from transport.sign_in import carrying

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from privacy.run.invitation import Invitation
    from transport.joining import Answer

_SECONDS = 30.0  # approving may take a moment


class AskingByGrpc:
    """One channel, over which one request may be made."""

    def __init__(self, invitation: Invitation, ca_bundle: Path, proxy: str | None = None) -> None:
        """Connect, and show the invitation.

        Args:
            invitation: of whoever asks.
            ca_bundle: the certificates of whoever issued that of what ends TLS.
            proxy: as in `[network]` of a site's settings.

        Raises:
            AuthenticityError: if the server is not the consortium's, or does not know the invitation.
            UnreachableError: if nobody answers who lets sites join.
        """
        self._invitation, self._address = invitation, invitation.server
        way = proxy_for(read_address(self._address).host, proxy)
        probe_ended(self._address, ca_bundle, proxy=way)
        self._channel = open_ended_channel(self._address, ca_bundle, way)
        try:
            self.used_by = self._standing()
        except BaseException:
            self._channel.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._channel.close()

    def _standing(self) -> str | None:
        call = self._channel.unary_unary(f"/{JOINING}/Standing", bytes, bytes)
        try:
            source = Received(call(b"", timeout=_SECONDS, metadata=carrying(self._invitation.proof)))
        except grpc.RpcError as error:
            raise self._named(error) from error
        if sha256(read_greeting(source)).hexdigest() != self._invitation.authority:
            msg = (
                f"the server behind {self._address} belongs to another consortium than this invitation; check with the "
                "coordinator that the invitation is for this server"
            )
            raise AuthenticityError(msg)
        return open_standing(read_standing(source), self._invitation.name, self._address)

    def ask(self, request: bytes) -> Answer:
        """Send the request, and return the answer.

        Raises:
            MalformedError: if it is no answer.
            UnreachableError: if the connection breaks.
        """
        call = self._channel.unary_stream(f"/{JOINING}/Ask", bytes, pb.Chunk.FromString)
        try:
            chunks = call(request, timeout=_SECONDS, metadata=carrying(self._invitation.proof))
            data = assemble(chunks, LARGEST_ANSWER)
        except grpc.RpcError as error:
            raise self._named(error) from error
        return read_answer(Received(bytes(data or b"")))

    def _named(self, error: grpc.RpcError) -> UnreachableError:
        details = quoted(error.details() or "no reason given")
        if error.code() is grpc.StatusCode.UNIMPLEMENTED or BY_A_PROXY in details:
            return UnreachableError(
                f"TLS is ended at {self._address}, and behind it nobody lets sites join ({details}): have the server "
                "run with [signature] and [joining] in consortium.toml, and the proxy pass gRPC on to [signature]'s "
                "`listen`"
            )
        return UnreachableError(f"cannot join at {self._address}: {details}; try again, or ask the coordinator")


class Received:
    """Bytes that have come."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def exactly(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            UnreachableError: if there are fewer.
        """
        data = self._data.read(count)
        if len(data) < count:
            msg = "an answer was cut short; try again"
            raise UnreachableError(msg)
        return data
