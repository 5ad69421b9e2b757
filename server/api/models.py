"""What the API takes and returns, as its OpenAPI document describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from privacy.run.people import PersonName, Right, Role
from transport.api import LARGEST_REASON

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
Status = Literal["waiting", "running", "finished", "failed", "stopped"]


class Asked(BaseModel):
    """A body that is sent: nothing unknown in it, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ChallengeRequest(Asked):
    """A request for a challenge."""

    person: PersonName | None = Field(default=None, description="null: who signs in with their organisation's account")


class OidcAnswer(BaseModel):
    """Where people sign in with their organisation's accounts (OpenID Connect)."""

    issuer: str
    client_id: str


class ChallengeAnswer(BaseModel):
    """A challenge, which is answered once."""

    challenge: Hex
    seconds: float = Field(description="for how long it is valid")
    consortium: str
    authority: Hex = Field(description="SHA-256 of the authority's certificate")
    oidc: OidcAnswer | None


class SignInRequest(Asked):
    """A person's answer to a challenge."""

    person: PersonName
    challenge: Annotated[str, Field(pattern=r"^[0-9a-f]{112}$")]
    host: Annotated[str, Field(max_length=255, description="the name or address that was dialled")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$", description="Ed25519")]


class AccountRequest(Asked):
    """An organisation's word on who somebody is."""

    challenge: Annotated[str, Field(pattern=r"^[0-9a-f]{112}$", description="the nonce in the token")]
    id_token: Annotated[str, Field(max_length=8 << 10, pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$")]


class SessionAnswer(BaseModel):
    """A session, and whose it is."""

    person: str
    role: Role
    rights: list[Right]
    ends: float = Field(description="seconds since 1970")


class NewSession(SessionAnswer):
    """A new session, with its token."""

    token: Hex = Field(description="to be sent as Authorization: Bearer")


class RunAnswer(BaseModel):
    """A run, as it stands. Times are in seconds since 1970."""

    digest: Hex
    name: str
    by: str = Field(description="who signed it: whose run it is")
    submitted: float
    status: Status
    reason: str = Field(description="why it failed or was stopped")
    started: float | None
    ended: float | None
    rounds: int
    released: int = Field(description="rounds that released a sum")
    behind: list[str] = Field(description="once it has ended: sites that get its last model when they are online again")


class RunsAnswer(BaseModel):
    """Runs, the newest first."""

    runs: list[RunAnswer]
    next: str | None = Field(description="the cursor for those before; null: there are no more")


class NumberedEvent(BaseModel):
    """An event of a run."""

    number: int
    event: dict[str, Any]


class EventsAnswer(BaseModel):
    """Events of a run, the oldest first."""

    events: list[NumberedEvent]
    next: int | None = Field(description="the number after which to go on; null: there are no more yet")
    status: Status


class StopRequest(Asked):
    """Why a run is to stop."""

    reason: Annotated[str, Field(max_length=LARGEST_REASON)] = ""


class HeadAnswer(BaseModel):
    """The last signed head of a site's ledger that the server has."""

    head: str
    signature: Hex


class HeadsAnswer(BaseModel):
    """Heads by site; a ledger of held-out records has a name of its own."""

    heads: dict[str, HeadAnswer]


class StatusAnswer(BaseModel):
    """The service now."""

    consortium: str
    roster: int = Field(description="the roster's version")
    sites: dict[str, bool] = Field(description="members, and whether each is connected")
    running: list[Hex] = Field(description="runs that go on now")
    paused: dict[str, str] = Field(description="of these, why one cannot go on at the moment")
