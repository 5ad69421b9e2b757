"""A hub for tests, and callers that speak to it as no agent would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest

from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import ServerFolder
from simulations.engine.federation import Federation
from transport import cloister_pb2 as pb
from transport.channel import SERVICE
from transport.framing import FRAME_BYTES, PROTOCOL, assemble

SITES = ("north", "south")
LIMIT = 4 << 20
LONG = 20.0
UNDER_WAY = 100  # mebibytes: more than may lie in the buffers of the line
ACCEPTED, LATE = pb.Receipt.ACCEPTED, pb.Receipt.LATE


@dataclass
class Server:
    """A hub on a free port, and what stands behind it."""

    federation: Federation
    place: ServerFolder
    mailboxes: Mailboxes
    hub: Hub
    address: str

    def node(self, site: str) -> int:
        return self.place.roster().member(site).node_id


class Caller:
    """Speaks to the hub as the test says, which a real agent would not do."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        self._channel = grpc.secure_channel(address, credentials)
        self._pull = self._channel.unary_stream(
            f"/{SERVICE}/Pull", pb.PullRequest.SerializeToString, pb.Chunk.FromString
        )
        self._push = self._channel.stream_unary(f"/{SERVICE}/Push", pb.Chunk.SerializeToString, pb.Receipt.FromString)

    def pull(self, protocol: int = PROTOCOL, wait: float = 0.0) -> bytes | None:
        data = assemble(self._pull(pb.PullRequest(protocol=protocol, wait_seconds=wait), timeout=LONG), LIMIT)
        return None if data is None else bytes(data)

    def messages(self, wait: float) -> Iterator[bytes]:
        """Read the messages of one stream."""
        chunks = self._pull(pb.PullRequest(protocol=PROTOCOL, wait_seconds=wait), timeout=LONG)
        while (data := assemble(chunks, LIMIT)) is not None:
            yield bytes(data)

    def push(self, chunks: Iterator[pb.Chunk]) -> int:
        return int(self._push(chunks, timeout=LONG).status)

    def refused(self, chunks: Iterator[pb.Chunk]) -> tuple[grpc.StatusCode, str]:
        """Push what must be refused; return how it was."""
        return refusal(lambda: self.push(chunks))


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), str(caught.value.details())


def chunk(total: int, data: bytes, reply_to: str, protocol: int = PROTOCOL) -> pb.Chunk:
    return pb.Chunk(opening=pb.Opening(protocol=protocol, total_bytes=total, reply_to=reply_to), data=data)


class Endless:
    """Chunks without end, and how many were asked for."""

    def __init__(self, total: int, reply_to: str) -> None:
        self.count, self._opening = 0, chunk(total, bytes(FRAME_BYTES), reply_to)

    def __iter__(self) -> Iterator[pb.Chunk]:
        yield self._opening
        while self.count < 100_000:
            self.count += 1
            yield pb.Chunk(data=bytes(FRAME_BYTES))
