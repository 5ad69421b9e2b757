"""The application: endpoints under `/v1`, and how each error is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from privacy.errors import CloisterError
from server.api import routes_runs, routes_server, routes_sessions
from server.api.answers import Answers
from server.api.asking import Api
from server.api.following import Following
from server.api.guard import Guard
from server.api.people import People
from server.api.problems import of_error, of_invalid, of_refusal, of_unexpected

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
        redirect_slashes=False,
        exception_handlers={
            HTTPException: of_refusal, RequestValidationError: of_invalid, CloisterError: of_error,
            Exception: of_unexpected,
        },
    )  # fmt: skip
    app.state.api = Api(runs, place, people, following, provider, Answers(runs.store))
    for routes in (routes_sessions, routes_runs, routes_server):
        app.router.routes += routes.router.routes  # `include_router` would make each endpoint anew for every request
    app.openapi()  # made now: later, the first request would wait for it
    return Guard(app), following
