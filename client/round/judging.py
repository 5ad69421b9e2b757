"""After a masked sum did not open: judge one member's body, and record on disk who lied.

A site sums the same updates again without a member only on evidence that it has checked itself: see
`privacy.crypto.agreement`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from client.round.aggregate import has_refused
from privacy.codec.envelope import verify_update
from privacy.crypto.agreement import accuse
from privacy.crypto.summation import claimed_site
from privacy.crypto.verdict import is_right, sign_verdict, verify_verdict
from privacy.errors import ProtocolError
from transport.mask_messages import Verdict

if TYPE_CHECKING:
    from client.round.admission import Round
    from privacy.codec.envelope import SignedUpdate
    from transport.mask_messages import Accusation


def judge(current: Round, body: SignedUpdate, accusation: Accusation | None = None) -> Verdict:
    """Return a verdict on a member's body; record evidence against the member if it is wrong, else against the accuser.

    Args:
        current: a masked round; this site has refused a sum of its plan.
        body: an update for this plan.
        accusation: by another member, that the body is wrong.

    Raises:
        ProtocolError: if this site sent no masked update for the plan, or refused no sum of it.
        AuthenticityError, MalformedError: if the signature on the body or the accusation is invalid.
    """
    site, plan = current.site, current.plan
    if site.outbox.masked(plan) is None or not has_refused(site, plan):
        msg = f"{site.name} has not refused a masked sum of this plan of round {plan.round}, so it judges no updates"
        raise ProtocolError(msg)
    member = claimed_site(body.header, plan)
    update = verify_update(body, member, plan, current.manifest, site.roster_under(plan.keys))
    right = is_right(update, plan, site.keyring.find(plan.keys), site.apply)
    if not right:
        accuse(site.commitments, plan.run, member, sha256(body.header).hexdigest())
    elif accusation:
        key = site.roster_under(plan.keys).member(accusation.site).verification_key
        verify_verdict(key, plan, body.header, accusation.signature, right=False)
        accuse(site.commitments, plan.run, accusation.site, sha256(accusation.signature).hexdigest())
    return Verdict(right, sign_verdict(site.signing_key, plan, body.header, right=right))
