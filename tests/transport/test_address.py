"""Addresses have one form: what is read is what every library understands, and everything else is refused with why."""

import ipaddress
import string
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from privacy.errors import MalformedError
from transport.address import Address, read_address, read_host

_LETTERS = string.ascii_letters + string.digits
labels = st.text(_LETTERS + "-_", min_size=1, max_size=63).filter(lambda text: text.strip("-") == text)
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: name[-1].isalpha())
hosts = st.one_of(names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda host: f"[{host}]"))
ports = st.integers(1, 65535)


@given(hosts, ports)
def test_every_address_is_read_and_written_in_one_form(host: str, port: int) -> None:
    assume(not host.rpartition(".")[2].lower().startswith("0x"))
    address = read_address(f"{host}:{port}")
    assert address == Address(read_host(host), port)
    assert read_address(str(address)) == address
    assert str(address) == str(address).lower()


@given(st.ip_addresses(v=6), ports)
def test_however_an_ipv6_address_is_spelled_it_is_the_same(address: ipaddress.IPv6Address, port: int) -> None:
    spelled = {str(address), address.exploded, address.exploded.upper()}
    assert {str(read_address(f"[{spelling}]:{port}")) for spelling in spelled} == {f"[{address.compressed}]:{port}"}
    assert {read_host(spelling) for spelling in spelled} == {read_host(f"[{address}]")} == {address.compressed}


@given(st.text())
def test_any_text_is_an_address_in_its_one_form_or_is_refused(text: str) -> None:
    with suppress(MalformedError):
        address = read_address(text)
        assert read_address(str(address)) == address
        assert text.isascii()
        assert 1 <= address.port <= 65535


@given(hosts, st.one_of(st.integers(max_value=-1), st.integers(65536)))
def test_a_port_is_never_wrapped_around(host: str, port: int) -> None:
    with pytest.raises(MalformedError):
        read_address(f"{host}:{port}")


def test_port_0_is_for_listening_alone() -> None:
    assert read_address("localhost:0", listening=True) == Address("localhost", 0)
    with pytest.raises(MalformedError, match="a port is a number from 1 to 65535"):
        read_address("localhost:0")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("", "write host:port"),
        ("localhost", "write host:port"),
        ("10.0.0.7", "write host:port"),
        (":9440", "write host:port"),
        ("localhost:", "a port is a number"),
        ("localhost:99999", "a port is a number from 1 to 65535"),
        ("localhost:-1", "a port is a number"),
        ("localhost:+1", "a port is a number"),
        ("localhost:09440", "a port is a number"),
        ("localhost:http", "a port is a number"),
        ("localhost:9440/", "a port is a number"),
        ("localhost:\u0661", "xn--"),
        ("::1:9440", r"in brackets: \[::1\]:9440"),
        ("::1", "in brackets"),
        ("fed.example.org:9440:1", "in brackets"),
        ("[::1]", "in brackets|write host:port"),
        ("[::1]9440", "in brackets|write host:port"),
        ("[::1", "in brackets|write host:port"),
        ("::1]:9440", "in brackets|write host:port"),
        ("[localhost]:9440", "write only an IPv6 address in brackets"),
        ("[127.0.0.1]:9440", "write only an IPv6 address in brackets"),
        ("[fe80::1%eth0]:9440", "a network interface"),
        ("https://fed.example.org:9440", "leave out https://"),
        ("unix:work.sock", "a port is a number"),
        ("ipv4:127.0.0.1:9440", "in brackets"),
        (" localhost:9440", "leave out spaces"),
        ("localhost:9440 ", "leave out spaces"),
        ("local host:9440", "leave out spaces"),
        ("localhost:9440\n", "leave out spaces"),
        ("klinik-k\u00f6ln.example.org:9440", "xn--"),
        ("fed.example.org.:9440", "the dot at its end"),
        ("*.example.org:9440", "letters a to z"),
        ("fed..example.org:9440", "letters a to z"),
        ("-fed.example.org:9440", "letters a to z"),
        (f"{'a' * 64}.org:9440", "letters a to z"),
        (f"{'a.' * 127}org:9440", "letters a to z"),
        ("127.1:9440", "four numbers"),
        ("1.2.3.256:9440", "four numbers"),
        ("0x7f000001:9440", "four numbers"),
        ("2130706433:9440", "four numbers"),
    ],
)  # fmt: skip
def test_an_invalid_address_is_refused_with_the_reason(wrong: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        read_address(wrong)


@pytest.mark.parametrize("wrong", ["", "fed.example.org:9440", "https://fed.example.org", "[fed]", "a b", "127.1"])
def test_an_invalid_host_is_refused(wrong: str) -> None:
    with pytest.raises(MalformedError, match="is not a host"):
        read_host(wrong)
