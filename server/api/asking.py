"""What endpoints have in common: who asks, whether they may, and a body that is read only then.

What waits for the store does so in a thread, one for a request: changing threads costs more than most requests do.
"""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from typing_extensions import override

from privacy.run.people import Right, may, with_right
from server.api.answers import JSON, Answers
from server.api.limits import Buckets
from server.api.people import BEARER, SignedIn
from server.api.problems import PROBLEMS, RefusalError, invalid, too_many
from transport.address import network_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from server.api.following import Following
    from server.api.oidc import Provider
    from server.api.people import People
    from server.api.runs import Runs
    from server.settings import ServerFolder

M = TypeVar("M", bound=BaseModel)

RATE, BURST = 50.0, 100.0
"""Requests of one person: a second, and at once."""

FAILURES_RATE, FAILURES_BURST = 10 / 60, 10.0
"""Failed attempts to sign in of one address: a second, and at once."""

_ACCOUNTS = 4  # threads that ask the provider of accounts, and may have to wait for it; the others serve

BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Api:
    """What the endpoints of one server work with."""

    runs: "Runs"
    place: "ServerFolder"
    people: "People"
    following: "Following"
    provider: "Provider | None"
    answers: Answers
    persons: Buckets = field(default_factory=lambda: Buckets(RATE, BURST))
    accounts: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_ACCOUNTS))
    failures: Buckets = field(default_factory=lambda: Buckets(FAILURES_RATE, FAILURES_BURST))


async def here(request: Request) -> Api:
    """Return what the endpoints of this server work with."""
    api: Api = request.app.state.api
    return api


Here = Annotated[Api, Depends(here)]


class Caller(SecurityBase):
    """A dependency that gives whoever asks, if their role has a right; without one, everybody who has signed in.

    It is one, not one for each step, as FastAPI takes longer to find out what a dependency needs than this takes.
    """

    scheme_name = "HTTPBearer"
    model = HTTPBearerModel(description="the token of a session: POST /v1/sessions")

    def __init__(self, right: Right | None = None) -> None:
        self._right: Right | None = right

    async def __call__(self, request: Request) -> SignedIn:
        """Return who asks.

        Raises:
            RefusalError: if they have not signed in, ask too often, or may not do this.
        """
        scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() != "bearer" or not token:
            detail = "sign in first (cloister login), and send the session's token as Authorization: Bearer"
            raise RefusalError(HTTPStatus.UNAUTHORIZED, detail, BEARER)
        api = await here(request)
        found = api.people.remembered(token)
        if found is None:
            found = await run_in_threadpool(api.people.who, token)
        if seconds := api.persons.take(found.person.name):
            raise too_many(seconds, f"of {found.person.name}")
        if self._right is not None:
            check(found, self._right)
        return found


def router(prefix: str, tag: str) -> APIRouter:
    """Return a router, whose endpoints are called and described as all are."""
    return APIRouter(prefix=prefix, tags=[tag], responses=PROBLEMS, route_class=_Endpoint)


class _Endpoint(APIRoute):
    """Refuses parameters that it does not know, as a misspelt one would silently do nothing."""

    @override
    def get_route_handler(self) -> "Callable[[Request], Coroutine[Any, Any, Response]]":
        """Return what answers a request."""
        answer, known = super().get_route_handler(), {field.alias for field in self.dependant.query_params}

        async def checked(request: Request) -> Response:
            if request.scope["query_string"] and (unknown := sorted(request.query_params.keys() - known)):
                detail = f"unknown parameter {unknown[0]!a}; known here: {', '.join(sorted(known)) or 'none'}"
                raise RefusalError(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
            return await answer(request)

        return checked


def check(found: SignedIn, right: Right) -> None:
    """Check that somebody's role has a right.

    Raises:
        RefusalError: if it has not.
    """
    person = found.person
    if not may(person.role, right):
        detail = f"{person.name} is {person.role}, and only {with_right(right)} may do this; ask one of them"
        raise RefusalError(HTTPStatus.FORBIDDEN, detail)


async def patient(api: Here, request: Request) -> str:
    """Return where somebody signs in from.

    Raises:
        RefusalError: if too many attempts from there have failed.
    """
    address = network_of(request.client.host if request.client else "::")
    if seconds := api.failures.wait(address):
        raise too_often(seconds)
    return address


def too_often(seconds: float) -> RefusalError:
    """Return the refusal of who fails to sign in too often."""
    return too_many(seconds, "to sign in that failed, from your address")


async def read_body(request: Request, model: type[M]) -> M:
    """Read a request's body, which is JSON.

    Raises:
        RefusalError: if it is not, or does not fit.
    """
    check_media_type(request, JSON)
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        raise RefusalError(HTTPStatus.UNPROCESSABLE_ENTITY, invalid(error.errors())) from None


def check_media_type(request: Request, wanted: str) -> None:
    """Check the type of a body, if there is one.

    Raises:
        RefusalError: if it is another.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    if given != wanted and not (empty and not given):
        raise RefusalError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send the body as {wanted}")


def described(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return what the OpenAPI document says of a body that `read_body` reads."""
    return {"requestBody": {"required": required, "content": {JSON: {"schema": model.model_json_schema()}}}}


def as_bytes(description: str) -> dict[str, Any]:
    """Return what the OpenAPI document says of bytes that are sent or answered."""
    return {"description": description, "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
