"""Messages of a round to one site's app: the plan, and what the site answers."""

import time
from dataclasses import replace

from flwr.app import Message, MessageType, RecordDict

from client.flower import app
from privacy.codec.envelope import SignedUpdate
from privacy.run.plan import RoundPlan
from simulations.engine.federation import Federation
from tests.federations import (
    SITES,
    context_of,
    keys_of,
    node_of,
    signed_run,
)
from transport import messages as wire
from transport.flower import instruction, stamp
from transport.parcel import decode_instruction, encode
from transport.run_messages import (
    pack_train,
    read_readiness,
    read_update,
)

TRAIN, EVALUATE, QUERY = MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY
SITE = "north"
NOWHERE = "0" * 64


def ask(federation: Federation, kind: str, content: RecordDict, site: str = SITE) -> Message:
    """Hand a site's app a message as it comes off the wire, and return its reply."""
    message = instruction(content, kind=kind, node=node_of(federation, site), run_id=1, group="1", ttl=60.0)
    stamp(message)
    return app(decode_instruction(b"".join(encode(message))), context_of(federation, site))


def plan_of(federation: Federation, **changes: object) -> RoundPlan:
    """The plan of the first round, with the model that the site says it has."""
    document, manifest, run = signed_run(federation)
    model = read_readiness(ask(federation, QUERY, wire.QUERY.pack(wire.Query(document))).content).model
    plan = RoundPlan(
        run=run,
        round=1,
        attempt=1,
        cohort=tuple(sorted(SITES)),
        roster_version=manifest.roster_version,
        epoch=1,
        keys=keys_of(federation, SITE).fingerprint,
        minimum_cohort=3,
        deadline=time.time() + 60,
        base_model=model,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]  # of several types


def train(federation: Federation, plan: RoundPlan) -> Message:
    """Ask the site to train under a plan."""
    return ask(federation, TRAIN, pack_train(signed_run(federation)[0], plan.to_bytes(), []))


def update_of(answer: Message) -> SignedUpdate:
    return read_update(answer.content)[0]
