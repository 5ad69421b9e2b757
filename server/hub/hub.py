"""The ports that agents dial: authenticated gRPC in front of the mailboxes.

A caller is identified by the public key of its TLS certificate, which must be in the roster; at the port for sites
whose TLS is ended on the way, by the token that it got when it signed in. Everyone else is rejected before any of their
messages are read, at that port except for a request to join that comes with an invitation's proof. The length of every
body is announced, and a body over the limit is refused before it is buffered. A fixed number of bodies is taken at a
time, so memory does not grow with the number of sites.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from contextlib import aclosing, asynccontextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography import x509
from google.protobuf.message import DecodeError

from privacy.errors import CloisterError, MalformedError, ProtocolError
from privacy.failpoints import failpoint
from privacy.failures import sentence
from server.hub.crowds import FROM_ONE
from server.hub.ports import STRANGERS, Port, Ports, refuse
from server.hub.signing_in import signing_in
from server.hub.slots import Slots
from transport import cloister_pb2 as pb
from transport.channel import SERVICE, credentials_without_clients, server_credentials
from transport.framing import FRAME_BYTES, PROTOCOL, Assembly, measurement_answer, read_roster_request, to_frames
from transport.pki import public_key_digest
from transport.sign_in import token_in

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from privacy.run.roster import Member, Roster
    from server.hub.mailboxes import Mailboxes
    from server.hub.sessions import Sessions
    from transport.channel import TlsFiles

    Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger("cloister.server")

_LONGEST_WAIT = 60.0  # seconds that a Pull may ask to wait
_BODY_SECONDS = 600.0  # until a body must be complete, in either direction
_BODIES_AT_ONCE = 4
_PIECE_SECONDS = 30.0  # for the next mebibyte of a body for whose slot others wait
_PULLS = 4  # open streams of messages per member, over all its connections
_START_SECONDS = 10.0
_LARGEST_PEM = 16 << 10  # bytes of a member's certificate
_NOT_LISTED = "the owner of this certificate is not a member of the roster; ask the coordinator to add this site"
_NOT_SIGNED_IN = (
    'sites sign in at this port: set authentication = "signature" in [network] of site.toml, or dial the port for '
    "certificates; if this site does sign in, have the proxy before the server pass on the header authorization"
)


class Hub:
    """Serves the mailboxes on one port or two, in its own thread."""

    def __init__(
        self,
        roster: Roster,
        mailboxes: Mailboxes,
        max_body_bytes: int,
        roster_file: bytes = b"",
        renewed: Callable[[Member, bytes], bytes] = lambda *_: b"",
        sessions: Sessions | None = None,
        *,
        from_one: int = FROM_ONE,
    ) -> None:
        """Take the roster, the mailboxes, the most that a reply may have, what renews certificates, who signed in.

        One address may have `from_one` connections.
        """
        self._renewed = renewed
        self._members = {member.tls_key: member for member in roster.members}
        self._version, self._roster_file = roster.version, roster_file
        self._streams = set[asyncio.Event]()  # one for each stream, which ends when a newer roster is offered
        self._mailboxes, self._limit = mailboxes, max_body_bytes
        self._sessions, self._ports = sessions, Ports("hub", from_one)
        self.signature_port: int | None = None
        self._loop = self._ports.loop
        self._turns = {member.site: asyncio.Semaphore(1) for member in roster.members}
        self._pulls = defaultdict[str, deque[asyncio.Timeout]](deque)
        self._calls = defaultdict[str, set[asyncio.Timeout]](set)
        self._bodies = Slots(_BODIES_AT_ONCE)

    def start(
        self,
        address: str,
        tls: TlsFiles,
        signature: str | None = None,
        services: Sequence[grpc.GenericRpcHandler] = (),
    ) -> int:
        """Listen, and return the port; `signature_port` is the other.

        Args:
            address: for sites that show a certificate.
            tls: the server's identity.
            signature: for sites that sign in.
            services: what is served there, too.

        Raises:
            MalformedError: if the address is malformed.
            KeyFileError: if no agent could accept the server's certificate.
            UnreachableError: if the address cannot be listened on.
        """
        handlers = self._handlers()
        ports = [Port(address, server_credentials(tls), [_service(handlers)])]
        if signature and self._sessions:
            handlers = handlers | signing_in(self._sessions)
            own = Port(signature, credentials_without_clients(tls), [_service(handlers), *services], STRANGERS)
            ports.append(own)
        port, *others = self._ports.start(*ports)
        self.signature_port = others[0] if others else None
        return port

    def admit(self, roster: Roster) -> None:
        """Serve the members of a newer roster, and nobody else: also cut the open calls of those that left."""
        self._loop.call_soon_threadsafe(self._admit, roster)

    def offer(self, version: int, roster_file: bytes) -> None:
        """Have the agents take a newer roster before their next message."""
        asyncio.run_coroutine_threadsafe(self._offer(version, roster_file), self._loop).result(_START_SECONDS)

    async def _offer(self, version: int, roster_file: bytes) -> None:
        self._version, self._roster_file = version, roster_file
        for changed in self._streams:
            changed.set()

    def _admit(self, roster: Roster) -> None:
        self._mailboxes.admit({member.node_id for member in roster.members})
        self._members = {member.tls_key: member for member in roster.members}
        if self._sessions:
            self._sessions.admit(roster)
        for member in roster.members:
            self._turns.setdefault(member.site, asyncio.Semaphore(1))
        stay = {member.site for member in roster.members}
        for site in self._calls.keys() - stay:
            for ends in self._calls[site]:
                ends.reschedule(0.0)

    def stop(self, grace: float = 2.0) -> None:
        """Let open calls finish, then close the ports. Safe to call more than once."""
        self._ports.stop(grace)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return what answers each call. All take streams: gRPC would read a single request before it asks us."""
        return {
            "Pull": grpc.stream_stream_rpc_method_handler(
                self._pull, request_deserializer=None, response_serializer=pb.Chunk.SerializeToString
            ),
            "Roster": grpc.stream_stream_rpc_method_handler(
                self._roster, request_deserializer=None, response_serializer=pb.Chunk.SerializeToString
            ),
            "Renew": grpc.stream_unary_rpc_method_handler(
                self._renew, request_deserializer=None, response_serializer=None
            ),
            "Measure": grpc.stream_unary_rpc_method_handler(
                self._measure, request_deserializer=None, response_serializer=None
            ),
            "Push": grpc.stream_unary_rpc_method_handler(
                self._push, request_deserializer=pb.Chunk.FromString, response_serializer=pb.Receipt.SerializeToString
            ),
        }

    async def _pull(self, requests: AsyncIterator[bytes], context: Context) -> None:
        member = await self._caller(context)
        try:
            request = pb.PullRequest.FromString(await _only(requests))
        except DecodeError:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "this is no request for messages")
        if request.protocol != PROTOCOL:
            msg = f"protocol {request.protocol} is not supported, only {PROTOCOL}; install the server's version"
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, msg)
        seconds = min(max(request.wait_seconds, 0.0), _LONGEST_WAIT)
        with suppress(TimeoutError):
            await self._send_messages(member, seconds, context)
            return
        await self._caller(context)  # which refuses a site that has left
        # By now the message is free. This may take as long as the member wants: it has to read first.
        msg = f"a message must be read in {_BODY_SECONDS:g} s, and the oldest of more than {_PULLS} streams ends"
        await refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, msg)

    async def _roster(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Send the roster with which the server runs, if it is newer than the agent's."""
        await self._caller(context)
        try:
            known = read_roster_request(await _only(requests))
        except MalformedError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if self._roster_file and self._version > known:
            async with asyncio.timeout(_LONGEST_WAIT):
                for frame in to_frames((self._roster_file,)):
                    await context.write(frame)

    async def _renew(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Return a newer certificate for the caller's key, as PEM; nothing if there is none.

        A caller whose TLS is ended on the way sends its certificate, as TLS does not show it.
        """
        member = await self._caller(context)
        certificate = _presented(context) or (await _only(requests))[:_LARGEST_PEM]
        if _key_digest(certificate) != member.tls_key:
            msg = f"this is not the certificate of {member.site}, so it is not renewed"
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, msg)
        try:
            async with self._turns[member.site]:
                return await asyncio.to_thread(self._renewed, member, certificate)
        except (CloisterError, OSError) as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, sentence(error))

    async def _measure(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Return this machine's time and as many bytes as a member asks for: it measures the line."""
        await self._caller(context)
        try:
            return measurement_answer(await _only(requests), time.time())
        except MalformedError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    @asynccontextmanager
    async def _until_it_leaves(self, member: Member) -> AsyncGenerator[None]:
        """Let a member's call go on until its membership ends.

        Raises:
            TimeoutError: as soon as the roster does not list it any more.
        """
        async with asyncio.timeout(None) as ends:
            self._calls[member.site].add(ends)
            try:
                yield
            finally:
                self._calls[member.site].discard(ends)

    async def _send_messages(self, member: Member, seconds: float, context: Context) -> None:
        """Send a member its messages.

        Raises:
            TimeoutError: if it does not read one in time, or has opened too many other streams since.
        """
        async with (
            self._until_it_leaves(member),
            self._newest(member.site),
            aclosing(self._messages(member.node_id, seconds)) as messages,
        ):
            async for parts in messages:
                async with asyncio.timeout(_BODY_SECONDS):
                    for frame in to_frames(parts):
                        await context.write(frame)

    @asynccontextmanager
    async def _newest(self, site: str) -> AsyncGenerator[None]:
        """Let a member have a few streams at a time: one that is not read holds its message in memory.

        Raises:
            TimeoutError: as soon as the member has opened too many others since.
        """
        async with asyncio.timeout(None) as ends:
            streams = self._pulls[site]
            streams.append(ends)
            if len(streams) > _PULLS:
                streams.popleft().reschedule(0.0)
            try:
                yield
            finally:
                if ends in streams:
                    streams.remove(ends)

    async def _messages(self, node: int, seconds: float) -> AsyncGenerator[tuple[bytes, ...]]:
        """Yield the messages to a site as they come: each once, after the one before it was answered or withdrawn.

        Lasts as long as the site asked for, and while it works on a message: whoever works is online.
        """
        changed, loop, sent, roster = asyncio.Event(), asyncio.get_running_loop(), "", self._version
        deadline = loop.time() + seconds

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._mailboxes.watch(node, wake)
        self._streams.add(changed)
        try:
            while self._version == roster:
                changed.clear()
                message_id, parts = self._mailboxes.peek(node) or ("", ())
                works, over = message_id == sent != "", not deadline > loop.time()  # also if it is NaN
                if message_id and not works and not (sent and over):
                    sent = message_id
                    yield parts
                elif over and not works:
                    return
                else:
                    async with asyncio.timeout_at(None if works else deadline):
                        await changed.wait()
        except TimeoutError:
            return
        finally:
            self._streams.discard(changed)
            self._mailboxes.unwatch(node, wake)

    async def _push(self, chunks: AsyncIterator[pb.Chunk], context: Context) -> pb.Receipt:
        member = await self._caller(context)
        try:
            # One body per member at a time: a member that stalls keeps nobody else out.
            async with self._until_it_leaves(member), asyncio.timeout(_BODY_SECONDS), self._turns[member.site]:
                await self._bodies.acquire()
                free = self._release_once()
                try:
                    async with self._bodies.kept_busy(FRAME_BYTES, _PIECE_SECONDS) as came:
                        return await self._receive(member, chunks, free, came)
                except BaseException:
                    free()
                    raise
        except TimeoutError:
            await self._caller(context)  # which refuses a site that has left
            msg = f"a body must come in {_BODY_SECONDS:g} s, and if others wait, each MiB in {_PIECE_SECONDS:g} s"
            await refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, msg)
        except ProtocolError as error:
            log.warning("%s: %s", member.site, error)
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, str(error))
        except CloisterError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _release_once(self) -> Callable[[], None]:
        """Return a function that frees a body's slot, from any thread; a second call does nothing."""
        left = [self._bodies.release]

        def free() -> None:
            with suppress(IndexError):
                left.pop()()

        return free

    async def _receive(
        self, member: Member, chunks: AsyncIterator[pb.Chunk], free: Callable[[], None], came: Callable[[int], None]
    ) -> pb.Receipt:
        """Receive a body. Its slot is freed once the reply has been read: waiting bodies count too."""
        assembly, reply_to = Assembly(self._limit), None
        async for chunk in chunks:
            came(len(chunk.data))
            if reply_to is None:
                reply_to = chunk.opening.reply_to
                if not self._mailboxes.expects(member.node_id, reply_to):
                    free()
                    return pb.Receipt(status=pb.Receipt.LATE)
            assembly.add(chunk)
        data = assembly.finish()
        if data is None or reply_to is None:
            msg = "a reply cannot have an empty body"
            raise MalformedError(msg)
        failpoint("reply-received")
        accepted = self._mailboxes.answer(member.node_id, reply_to, data, free)
        failpoint("reply-accepted")
        return pb.Receipt(status=pb.Receipt.ACCEPTED if accepted else pb.Receipt.LATE)

    async def _caller(self, context: Context) -> Member:
        """Return the calling member; abort the call of anyone else."""
        if presented := _presented(context):
            member = self._members.get(_key_digest(presented))
            code, msg = grpc.StatusCode.PERMISSION_DENIED, _NOT_LISTED
        elif (token := token_in(context.invocation_metadata())) is not None and self._sessions:
            member = self._sessions.member(token)
            code, msg = grpc.StatusCode.UNAUTHENTICATED, "this site has to sign in again"
        else:
            member, code, msg = None, grpc.StatusCode.PERMISSION_DENIED, _NOT_SIGNED_IN
        if member is None:
            await refuse(context, code, msg)
        return member


def _service(handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


async def _only(messages: AsyncIterator[bytes]) -> bytes:
    """Return a known caller's request; nothing if it sends none."""
    return await anext(aiter(messages), b"")


def _presented(context: Context) -> bytes:
    """Return the caller's certificate, as PEM."""
    return bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))


@lru_cache(maxsize=4096)
def _key_digest(pem: bytes) -> str:
    try:
        return public_key_digest(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return ""
