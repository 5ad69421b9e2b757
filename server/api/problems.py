"""Every refusal is a problem of RFC 9457: a status, and a sentence that says what to do. None shows a trace."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from privacy.errors import (
    AuthenticityError,
    CloisterError,
    MalformedError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    RunError,
)
from privacy.failures import sentence
from privacy.untrusted_text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import Request
    from fastapi.exceptions import RequestValidationError

log = logging.getLogger("cloister.api")

MEDIA_TYPE = "application/problem+json"
_LONGEST = 1000  # characters of a sentence
_MOST_ERRORS = 5


class Problem(BaseModel):
    """A refusal (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="what the status means")
    status: int
    detail: str = Field(description="what happened, and what to do")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    int(status): {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}
"""What any endpoint may answer, for the OpenAPI document."""


class RefusalError(HTTPException):
    """A request that is refused."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(int(status), detail, headers)


def too_many(seconds: float, whose: str) -> RefusalError:
    """Return the refusal of a request that came too soon after others."""
    wait = int(seconds) + 1
    detail = f"too many requests {whose}; try again in {wait} s"
    return RefusalError(HTTPStatus.TOO_MANY_REQUESTS, detail, {"Retry-After": str(wait)})


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a problem as a response."""
    title = HTTPStatus(status).phrase
    body = Problem(title=title, status=status, detail=plain(detail, _LONGEST))
    return JSONResponse(body.model_dump(), status, headers, MEDIA_TYPE)


async def of_refusal(_: Request, error: Exception) -> JSONResponse:
    """Answer a refused request, or one that no endpoint takes."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these
    detail = error.detail
    if not isinstance(error, RefusalError):  # Starlette's own, of one word
        detail = {
            HTTPStatus.NOT_FOUND: "there is nothing here; /v1/openapi.json lists what there is",
            HTTPStatus.METHOD_NOT_ALLOWED: "this cannot be done here; /v1/openapi.json lists what can",
        }.get(HTTPStatus(error.status_code), detail)
    return problem(error.status_code, detail, error.headers)


async def of_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer a request whose parameters do not fit."""
    errors: RequestValidationError = error  # type: ignore[assignment]  # registered for these
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, invalid(errors.errors()))


def invalid(errors: Any) -> str:  # noqa: ANN401 - pydantic's
    """Return what does not fit, as a sentence; values are not quoted, as they may be secret."""
    return "; ".join(_said(each) for each in errors[:_MOST_ERRORS]) + "; correct the request"


def _said(error: Mapping[str, Any]) -> str:
    """Return what does not fit in one place: of the parameters, or of a body, which has no place if it is not JSON."""
    place = ".".join(plain(str(part), 40) for part in error["loc"]) or "the body"
    return f"{place}: {_WORDS.get(error['type']) or plain(error['msg'], 200)}"


_WORDS = {"missing": "it is missing", "extra_forbidden": "there is nothing of this name", "string_type": "not a string"}
"""Where pydantic's own words say less than they could."""


async def of_error(_: Request, error: Exception) -> JSONResponse:
    """Answer a request that failed in our own way."""
    assert isinstance(error, CloisterError)  # noqa: S101 - registered for these
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), HTTPStatus.SERVICE_UNAVAILABLE)
    if error.may_leave_site or isinstance(error, NotFoundError | RunError):
        return problem(status, str(error))
    log.warning("a request failed: %s", sentence(error))
    kind = (type(error).__doc__ or "").strip().splitlines()[0].rstrip(".")
    return problem(status, f"{kind}; the reason is in the server's log, ask its operator")


_STATUS: dict[type, HTTPStatus] = {
    MalformedError: HTTPStatus.BAD_REQUEST,
    NotFoundError: HTTPStatus.NOT_FOUND,
    RunError: HTTPStatus.CONFLICT,
    AuthenticityError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ProtocolError: HTTPStatus.UNPROCESSABLE_ENTITY,
}


async def of_unexpected(_: Request, __: Exception) -> JSONResponse:
    """Answer a request that failed as none should. The guard, to which the error goes on, says in the log where."""
    detail = "something went wrong in the server; the reason is in its log, ask its operator"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)
