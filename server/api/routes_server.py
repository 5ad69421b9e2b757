"""Look at the service itself: its roster, who is connected, and the heads of the sites' ledgers."""

from fastapi import Depends, Response

from server.api import asking
from server.api.answers import JSON
from server.api.asking import BYTES, Caller, Here, as_bytes
from server.api.models import HeadAnswer, HeadsAnswer, StatusAnswer
from strategies.ledger_heads import LedgerHeads

router = asking.router("/v1", "server")


@router.get("/status", dependencies=[Depends(Caller("look"))], response_model=StatusAnswer)
async def look_at_service(api: Here) -> Response:
    """Look at what the service does now."""
    now = api.runs.status()
    answer = StatusAnswer(
        consortium=api.place.settings.consortium,
        roster=api.people.roster().version,
        sites={site: site in now.online for site in now.members},
        running=list(now.running),
        paused=now.paused,
    )
    return Response(answer.model_dump_json(), media_type=JSON)


@router.get(
    "/roster",
    dependencies=[Depends(Caller("look"))],
    response_class=Response,
    responses={200: as_bytes("the signed roster")},
)
def fetch_roster(api: Here) -> Response:
    """Fetch the roster in force, as its authority signed it."""
    return Response(api.place.signed_roster()[1], media_type=BYTES)


@router.get("/ledger-heads", dependencies=[Depends(Caller("audit"))])
def list_heads(api: Here) -> HeadsAnswer:
    """List the last head of each site's ledger, with the site's signature."""
    kept = LedgerHeads(api.place.folder / api.place.settings.ledger_heads).all()
    return HeadsAnswer(
        heads={site: HeadAnswer(head=head.head, signature=head.signature.hex()) for site, head in kept.items()}
    )
