"""Sign in, look who one is, and sign out."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request

from privacy.run.people import RIGHTS, may
from server.api import asking
from server.api.asking import Api, Caller, Here, described, patient, read_body, too_often
from server.api.models import (
    AccountRequest,
    ChallengeAnswer,
    ChallengeRequest,
    NewSession,
    OidcAnswer,
    SessionAnswer,
    SignInRequest,
)
from server.api.people import SignedIn
from server.api.problems import RefusalError

router = asking.router("/v1", "sessions")

Origin = Annotated[str, Depends(patient)]
Asker = Annotated[SignedIn, Depends(Caller())]


@router.post("/challenges", status_code=HTTPStatus.CREATED, openapi_extra=described(ChallengeRequest))
async def ask_for_challenge(api: Here, request: Request) -> ChallengeAnswer:
    """Ask for a challenge, which whoever signs in signs, or has their organisation name as nonce."""
    asked, provider = await read_body(request, ChallengeRequest), api.provider
    challenge, seconds = api.people.challenge(asked.person)
    return ChallengeAnswer(
        challenge=challenge,
        seconds=seconds,
        consortium=api.place.settings.consortium,
        authority=api.people.authority,
        oidc=OidcAnswer(issuer=provider.issuer, client_id=provider.client_id) if provider else None,
    )


@router.post("/sessions", status_code=HTTPStatus.CREATED, openapi_extra=described(SignInRequest))
async def sign_in(api: Here, request: Request, origin: Origin) -> NewSession:
    """Sign in with the key of one's entry in the roster."""
    asked = await read_body(request, SignInRequest)
    signature = bytes.fromhex(asked.signature)
    return await _open(
        api, origin, lambda: api.people.by_signature(asked.person, asked.challenge, asked.host, signature)
    )


@router.post("/sessions/oidc", status_code=HTTPStatus.CREATED, openapi_extra=described(AccountRequest))
async def sign_in_with_account(api: Here, request: Request, origin: Origin) -> NewSession:
    """Sign in with one's organisation's account (OpenID Connect)."""
    provider = api.provider
    if provider is None:
        detail = "this server knows no organisation's accounts ([api.oidc] in consortium.toml); sign in with your key"
        raise RefusalError(HTTPStatus.NOT_FOUND, detail)
    asked = await read_body(request, AccountRequest)

    def work() -> tuple[str, SignedIn]:
        person = provider.person(asked.id_token, asked.challenge, api.people.roster())
        return api.people.by_account(person, asked.challenge)

    return await _open(api, origin, work, api.accounts)


@router.get("/sessions/current")
async def look_at_session(found: Asker) -> SessionAnswer:
    """Look who one is, and what one may do."""
    return SessionAnswer(**_shown(found))


@router.delete("/sessions/current", status_code=HTTPStatus.NO_CONTENT)
def sign_out(api: Here, found: Asker) -> None:
    """End the session."""
    api.people.end(found.session)


async def _open(
    api: Api, origin: str, how: Callable[[], tuple[str, SignedIn]], limiter: CapacityLimiter | None = None
) -> NewSession:
    """Sign somebody in, or count the failure: before it is known to be one, as many may be tried at once."""
    if seconds := api.failures.take(origin):
        raise too_often(seconds)
    failed = False
    try:
        token, found = await run_sync(how, limiter=limiter)
    except RefusalError as error:
        failed = error.status_code == HTTPStatus.UNAUTHORIZED
        raise
    finally:
        if not failed:
            api.failures.give(origin)
    return NewSession(token=token, **_shown(found))


def _shown(found: SignedIn) -> dict[str, Any]:
    role = found.person.role
    rights = [right for right in RIGHTS if may(role, right)]
    return {"person": found.person.name, "role": role, "rights": rights, "ends": found.session.ends}
