"""The agent's connection: pull messages, push replies. Every call has a deadline and raises Cloister's errors."""

from __future__ import annotations

import time
from threading import Timer
from typing import TYPE_CHECKING

import grpc

from client.session import Session
from privacy.errors import AuthenticityError, MalformedError, ProtocolError, UnreachableError
from privacy.untrusted_text import quoted
from transport import cloister_pb2 as pb
from transport.channel import SERVICE, open_channel, open_ended_channel, probe, probe_ended
from transport.framing import (
    FRAME_BYTES,
    PROTOCOL,
    assemble,
    measurement_request,
    read_measurement,
    roster_request,
    to_frames,
)
from transport.pki import certificate_pem, read_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from transport.channel import TlsFiles
    from transport.proxies import Proxy
    from transport.sign_in import Signer

WAIT_SECONDS = 20.0
_TRANSFER_SECONDS = 600.0
_WORK_SECONDS = 7 * 86_400.0  # a stream lasts while the agent works on its message: so the server knows of the agent
_MAX_BODY = 4 << 30
_ROSTER_SECONDS, _LARGEST_ROSTER = 60.0, 64 << 20
_MEASURE_SECONDS = 20.0

_REFUSALS = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
_MISFITS = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS,
            grpc.StatusCode.UNIMPLEMENTED}  # fmt: skip


class Exchange:
    """One site's connection to the server."""

    def __init__(self, address: str, tls: TlsFiles, proxy: Proxy | None = None, signer: Signer | None = None) -> None:
        """Open the channel. With `signer`, TLS ends on the way: the site shows no certificate, but signs in."""
        self._address, self._tls = address, tls
        self._session: Session | None = None
        if signer is None:
            self._channel = open_channel(address, tls, proxy)
        else:
            self._channel = open_ended_channel(address, signer.ca_bundle, proxy)
            self._session = Session(self._channel, address, signer)
        self._pull = self._channel.unary_stream(
            f"/{SERVICE}/Pull",
            request_serializer=pb.PullRequest.SerializeToString,
            response_deserializer=pb.Chunk.FromString,
        )
        self._roster = self._channel.unary_stream(
            f"/{SERVICE}/Roster",
            request_serializer=bytes,
            response_deserializer=pb.Chunk.FromString,
        )
        self._renew = self._channel.unary_unary(f"/{SERVICE}/Renew", bytes, bytes)
        self._measure = self._channel.unary_unary(f"/{SERVICE}/Measure", bytes, bytes)
        self._messages: Iterator[pb.Chunk] = iter(())  # of a `Pull` that lasts until this time, by the monotonic clock
        self._until = 0.0
        self._guard, self._reads = Timer(0.0, lambda: None), False
        self._push = self._channel.stream_unary(
            f"/{SERVICE}/Push",
            request_serializer=pb.Chunk.SerializeToString,
            response_deserializer=pb.Receipt.FromString,
        )
        # The same call for a reply in one chunk. gRPC starts a thread for each stream of chunks, but none for one.
        self._push_one = self._channel.unary_unary(
            f"/{SERVICE}/Push",
            request_serializer=pb.Chunk.SerializeToString,
            response_deserializer=pb.Receipt.FromString,
        )

    def __enter__(self) -> Self:
        """Return the open connection."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        """Close the connection."""
        self._guard.cancel()
        self._channel.close()

    def sign_in(self) -> None:
        """Sign in now rather than before the first call, where TLS does not show who this site is.

        Raises:
            UnreachableError: if the server does not answer.
            AuthenticityError: if the server does not prove who it is, or does not know this site.
        """
        self._metadata()

    def pull(self, wait: float = WAIT_SECONDS) -> bytearray | None:
        """Wait for a message for up to `wait` seconds; return its bytes, or None if there was none.

        The next message, which comes once this one is answered, may come in the same stream.

        Raises:
            UnreachableError: if the server does not answer.
            AuthenticityError: if the server does not know this site.
        """
        until, self._until = self._until, 0.0  # a stream that ended or broke is not read again
        try:
            if not time.monotonic() < until:
                until = time.monotonic() + wait
                self._open_stream(wait)
            self._reads = True
            data = assemble(self._messages, _MAX_BODY)
        except grpc.RpcError as error:
            raise self._named(error) from error
        finally:
            self._reads = False
        if data is not None:
            self._until = until
        return data

    def _open_stream(self, wait: float) -> None:
        """Begin a `Pull`; end it if it is still read long after it should have ended."""
        request = pb.PullRequest(protocol=PROTOCOL, wait_seconds=wait)
        self._messages = stream = self._pull(request, timeout=_WORK_SECONDS, metadata=self._metadata())

        def look() -> None:
            if self._reads:
                stream.cancel()

        self._guard.cancel()
        self._guard = Timer(wait + _TRANSFER_SECONDS, look)
        self._guard.daemon = True
        self._guard.start()

    def roster(self, version: int = 0) -> bytes | None:
        """Return the roster with which the server runs, not checked yet; None unless it is newer than `version`.

        Raises:
            UnreachableError: if the server does not answer.
            AuthenticityError: if the server does not know this site.
        """
        try:
            chunks = self._roster(roster_request(version), timeout=_ROSTER_SECONDS, metadata=self._metadata())
            data = assemble(chunks, _LARGEST_ROSTER)
        except grpc.RpcError as error:
            raise self._named(error) from error
        return bytes(data) if data else None

    def renewed_certificate(self) -> bytes | None:
        """Return a newer certificate for this site's key, not checked yet; None if the server has none.

        Raises:
            UnreachableError: if the server does not answer.
            AuthenticityError: if the server does not know this site.
        """
        certificate = read_certificate(self._tls.certificate) if self._session else None  # which TLS does not show
        request = certificate_pem(certificate) if certificate else b""
        try:
            return self._renew(request, timeout=_ROSTER_SECONDS, metadata=self._metadata()) or None
        except grpc.RpcError as error:
            raise self._named(error) from error

    def measure(self, send: int = 0, receive: int = 0, seconds: float = _MEASURE_SECONDS) -> tuple[float, float] | None:
        """Send and receive so many random bytes, at most a frame each.

        Returns:
            The server's clock, in seconds since 1970, and the seconds that it all took; None if the server's version
            has no measurements.

        Raises:
            UnreachableError: if the server does not answer within `seconds`.
            AuthenticityError: if the server does not know this site.
            ProtocolError: if the server's version speaks another protocol.
        """
        request, start = measurement_request(send, receive), time.perf_counter()
        try:
            answer = self._measure(request, timeout=seconds, metadata=self._metadata())
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise self._named(error) from error
        return read_measurement(answer), time.perf_counter() - start

    def push(self, parts: tuple[bytes, ...], reply_to: str) -> bool:
        """Deliver a reply; return whether the server still waited for it.

        Raises:
            UnreachableError: if the server does not answer; send the same bytes again.
            ProtocolError: if the server refuses it permanently.
        """
        frames, metadata = to_frames(parts, reply_to), self._metadata()
        try:
            if sum(map(len, parts)) <= FRAME_BYTES:
                receipt = self._push_one(next(frames), timeout=_TRANSFER_SECONDS, metadata=metadata)
            else:
                receipt = self._push(frames, timeout=_TRANSFER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            raise self._named(error) from error
        return bool(receipt.status == pb.Receipt.ACCEPTED)

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        return self._session.metadata() if self._session else None

    def _named(self, error: grpc.RpcError) -> AuthenticityError | MalformedError | ProtocolError | UnreachableError:
        code, details = error.code(), quoted(error.details() or "no reason given")
        if code is grpc.StatusCode.UNAUTHENTICATED and self._session:
            self._session.drop()
            return UnreachableError(f"the server at {self._address} does not know this site's token: {details}")
        if code in _REFUSALS:
            return AuthenticityError(f"the server at {self._address} refuses this site: {details}")
        if code in _MISFITS:
            return ProtocolError(f"the server at {self._address} refused a message: {details}")
        return UnreachableError(
            f"lost the server at {self._address} ({code.name.lower().replace('_', ' ')}: {details})"
        )


def reach(address: str, tls: TlsFiles, proxy: Proxy | None, signer: Signer | None) -> None:
    """Find out what prevents a connection, if anything does.

    Raises:
        CloisterError: as `probe` does.
    """
    if signer is None:
        probe(address, tls, proxy=proxy)
    else:
        probe_ended(address, signer.ca_bundle, proxy=proxy)
        with Exchange(address, tls, proxy, signer) as exchange:
            exchange.sign_in()
