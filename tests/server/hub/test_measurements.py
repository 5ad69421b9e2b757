"""A member measures its line; nobody else does, and nobody asks for much at once."""

import time
from pathlib import Path

import pytest

from client.exchange import Exchange
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from tests.federations import authority_of, certify, tls_of
from tests.server.callers import Server
from transport.framing import FRAME_BYTES, measurement_answer, measurement_request, read_measurement


def test_a_member_learns_the_servers_time_and_gets_as_much_as_it_asks_for(server: Server) -> None:
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange:
        for send, receive in ((0, 0), (FRAME_BYTES, 0), (0, FRAME_BYTES), (FRAME_BYTES, FRAME_BYTES)):
            before = time.time()
            measured = exchange.measure(send, receive)
            assert measured is not None
            clock, seconds = measured
            assert before <= clock <= time.time()
            assert seconds > 0


def test_who_is_not_a_member_learns_nothing(server: Server, tmp_path: Path) -> None:
    files = certify(tmp_path / "other", authority_of(server.federation), name="other", days=1, server=False)
    with Exchange(server.address, files) as exchange, pytest.raises(AuthenticityError, match="not a member"):
        exchange.measure()


def test_more_than_a_frame_is_refused(server: Server) -> None:
    with Exchange(server.address, tls_of(server.federation, "north")) as exchange:
        with pytest.raises(ProtocolError, match="refused a message"):
            exchange.measure(receive=FRAME_BYTES + 1)
        assert exchange.measure()


@pytest.mark.parametrize("request_", [b"", b"\0" * 7, b"\0\0\0\x02\0\0\0\0", measurement_request(0, FRAME_BYTES + 1)])
def test_what_is_no_request_is_refused(request_: bytes) -> None:
    with pytest.raises(MalformedError, match="no measurement under protocol 1"):
        measurement_answer(request_, 1.0)


@pytest.mark.parametrize("clock", [float("nan"), float("inf"), -1.0, 1e300])
def test_an_answer_without_a_time_is_refused(clock: float) -> None:
    with pytest.raises(MalformedError, match="has no time"):
        read_measurement(measurement_answer(measurement_request(0, 0), clock))
    with pytest.raises(MalformedError, match="has no time"):
        read_measurement(b"short")


def test_an_answer_holds_the_time_and_as_many_bytes_as_were_asked_for() -> None:
    answer = measurement_answer(measurement_request(10, 5), 12.5)
    assert (read_measurement(answer), len(answer)) == (12.5, 8 + 5)
