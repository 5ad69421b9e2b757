"""The application: endpoints under `/v1`, and how each error is answered."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from privacy.errors import CloisterError
from server.api import routes_runs, routes_server, routes_sessions
from server.api.answers import Answers
from server.api.asking import Api
from server.api.following import Following
from server.api.guard import Guard
from server.api.people import People
from server.api.problems import PROBLEMS, RefusalError, of_error, of_invalid, of_refusal, of_unexpected

if TYPE_CHECKING:
    from server.api.oidc import Provider
    from server.api.runs import Runs
    from server.settings import ServerFolder

VERSION = "1"


def make_app(runs: Runs, place: ServerFolder, provider: Provider | None = None) -> tuple[Guard, Following]:
    """Return the application, and the streams in it, which have to end before the server does.

    Raises:
        KeyFileError: if the server's certificates cannot be read.
    """
    people = People(runs, place.tls)
    following = Following(runs, people)
    app = FastAPI(
        title="Cloister", version=VERSION, openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None,
        redirect_slashes=False, responses=PROBLEMS, dependencies=[Depends(_known)],
        exception_handlers={
            HTTPException: of_refusal, RequestValidationError: of_invalid, CloisterError: of_error,
            Exception: of_unexpected,
        },
    )  # fmt: skip
    app.state.api = Api(runs, place, people, following, provider, Answers(runs.store))
    for routes in (routes_sessions, routes_runs, routes_server):
        app.include_router(routes.router)
    app.state.known = _parameters(app.openapi())  # made now: later, the first request would wait for it
    return Guard(app), following


async def _known(request: Request) -> None:
    """Refuse parameters that an endpoint does not know, as a misspelt one would silently do nothing."""
    if not request.scope["query_string"]:
        return
    known = request.app.state.known[request.scope["route"].path, request.method.lower()]
    if unknown := sorted(request.query_params.keys() - known):
        detail = f"unknown parameter {unknown[0]!a}; known here: {', '.join(sorted(known)) or 'none'}"
        raise RefusalError(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def _parameters(document: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    """Return the names of the parameters that follow `?`, of each path and method of an OpenAPI document."""
    return {
        (path, method): {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
