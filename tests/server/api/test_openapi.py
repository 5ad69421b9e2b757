"""The API does what its OpenAPI document says, whatever is sent: schemathesis makes the requests."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server import challenges
from server.api import asking, guard
from tests.server.api.consortia import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.api.consortia import Consortium, Server

FEW, MANY = 4, 300
"""Requests to each endpoint in the fast suite, and with `-m soak`."""


@pytest.fixture(scope="module")
def open_server(consortium: Consortium) -> Iterator[Server]:
    """A server that takes any number of requests and sign-ins, and has a run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (asking, guard):
            patch.setattr(module, "BURST", 1e9)
        patch.setattr(asking, "FAILURES_BURST", 1e9)
        patch.setattr(challenges, "ANSWERS", 10**9)
        with serving(consortium) as server:
            digest = server.queue.submit(consortium.sign("described", "founder"), "founder").digest
            server.store.record(digest).append({"event": "started"})
            server.store.mark(digest, "failed", "the disk is full")
            yield server


def described_by(server: Server) -> Any:  # noqa: ANN401 - schemathesis has several types of schemas
    """What the server's document says."""
    with server.http() as http:
        described = schemathesis.openapi.from_dict(http.get("/v1/openapi.json").json())
    described.config.update(base_url=f"https://{server.address}")
    described.config.generation.update(with_security_parameters=False)  # what is sent has a token of our own
    return described


def try_all(server: Server, requests: int, *, derandomize: bool) -> int:
    """Send requests to every endpoint, fitting ones and others, as the coordinator, and compare answer and document.

    Returns:
        How many were sent.
    """
    described = described_by(server)
    authority, sent = str(server.consortium.server / "authority.pem"), 0
    usual = settings(
        max_examples=requests,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType] - an enumeration of theirs
        derandomize=derandomize,
    )
    tokens = [server.token("founder")]

    def agree(case: schemathesis.Case[Any]) -> None:
        nonlocal sent
        sent += 1
        signed = case.path == "/v1/runs" and case.method == "POST"  # no schema says what a signature is
        case.call_and_validate(
            headers={"Authorization": f"Bearer {tokens[0]}"},
            verify=authority,
            excluded_checks=[positive_data_acceptance] if signed else [],
        )
        if case.method == "DELETE":
            tokens[0] = server.token("founder")

    for found in described.get_all_operations():
        assert isinstance(found, Ok)
        for mode in GenerationMode:
            with suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
                usual(given(case=found.ok().as_strategy(generation_mode=mode))(agree))()
    return sent


def test_every_endpoint_answers_as_it_says(open_server: Server) -> None:
    assert try_all(open_server, FEW, derandomize=True) > 50


@pytest.mark.parametrize("path", ["", "/events", "/follow"])
def test_a_run_is_shown_as_the_document_says(open_server: Server, path: str) -> None:
    case = described_by(open_server)[f"/v1/runs/{{run}}{path}"]["GET"].Case(path_parameters={"run": "described"})
    authority = str(open_server.consortium.server / "authority.pem")
    answer = case.call_and_validate(
        headers={"Authorization": f"Bearer {open_server.token('founder')}"}, verify=authority
    )
    assert answer.status_code == 200


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_endpoint_answers_as_it_says_to_many_requests(open_server: Server) -> None:
    assert try_all(open_server, MANY, derandomize=False) > 50 * FEW


def test_the_document_is_of_openapi_3_1_and_says_what_each_endpoint_does(shared_server: Server) -> None:
    with shared_server.http() as http:
        document = http.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"].endswith("."), (method, path)
            assert "application/problem+json" in operation["responses"]["401"]["content"]
