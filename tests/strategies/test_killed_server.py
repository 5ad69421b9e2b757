"""A server that is killed anywhere goes on with its run: the same rounds, the same model, the same charges.

The kill is an exception that nothing catches, raised where a signal would end the process: before any write to the
server's disk, or once any message has been answered. The next server knows only what is on disk.
`tests/reliability` kills real processes.
"""

import resource
import sys
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from flwr.app import Context, Message
from sqlalchemy import event
from typing_extensions import override

from client.flower import app as client_app
from privacy.errors import RunError, StorageError
from privacy.run.settings import RunSettings
from privacy.run.tables import Vote
from simulations.engine.federation import Federation
from simulations.engine.inline import InlineGrid
from simulations.engine.results import opened_store, read_results
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    Answer,
    FederationMaker,
    charges_of,
    models_of,
    rounds_of,
    run_with,
    signed_run,
)
from tests.strategies.test_voting import voting
from transport.messages import REVEAL

ROUNDS = 2
PLAIN = replace(SETTINGS, rounds=ROUNDS)
MASKED = replace(PLAIN, encryption=replace(PLAIN.encryption, collusion_resistant=True))
STATEFUL = replace(PLAIN, strategy={"name": "fedadam"})
BOUNDED = replace(MASKED, encryption=replace(MASKED.encryption, update_norm=0.5))
VOTED = replace(MASKED, vote=Vote(epsilon=1.0, tolerance=0.0))
RUNS = {"plain": PLAIN, "masked": MASKED, "bounded": BOUNDED, "stateful": STATEFUL, "voted": VOTED}


class Killed(BaseException):
    """Ends the server at once."""


class Countdown:
    """Kills when it has been asked a number of times."""

    def __init__(self, left: int) -> None:
        self.left = self.total = left

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


_WRITES: list[tuple[str, Countdown]] = []  # folders, and what counts writes in or below them


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename" and _WRITES and str(arguments[1]).startswith(_WRITES[-1][0]):
        _WRITES[-1][1]()


sys.addaudithook(_audit)


@event.listens_for(sa.Engine, "commit")
def _before_commit(connection: sa.Connection) -> None:
    if _WRITES and connection.in_transaction() and not connection.get_execution_options().get("cloister_reads"):
        _WRITES[-1][1]()


def serve_to_a_write(federation: Federation, countdown: Countdown) -> None:
    """Serve, and be killed before a file is replaced, or a transaction committed."""
    _WRITES.append((str(federation.server), countdown))
    try:
        run_with(federation, sites(federation))
    finally:
        _WRITES.pop()


def serve_to_a_reply(federation: Federation, countdown: Countdown) -> None:
    """Serve, and be killed when a site has answered, before the server has its reply."""

    class Grid(InlineGrid):
        @override
        def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
            reply = super()._next(waiting, seconds)
            if reply is not None:
                countdown()
            return reply

    def make(run: int, contexts: Mapping[int, Context], answer: Answer) -> InlineGrid:
        return Grid(run, contexts, answer)

    run_with(federation, sites(federation), make_grid=make)


def make(make_federation: FederationMaker, settings: RunSettings, name: str) -> Federation:
    """Make a federation whose sites allow votes, with nothing in it yet."""
    federation = make_federation(settings, dict.fromkeys(SITES, replace(TERMS, vote_epsilon=1.0)), name=name)
    (federation.server / "store.sqlite").unlink()  # its tables are written under the countdown, too
    return federation


def sites(federation: Federation) -> Answer:
    """The sites: honest, and against the model of the first round where they vote."""
    return voting(federation, lambda number, _: number == 1) if signed_run(federation)[1].settings.vote else client_app


Serve = Callable[[Federation, Countdown], None]


def weights_of(federation: Federation) -> dict[str, bytes]:
    """The weights in each site's model file. What stands before them names the run."""
    return {site: data[8 + int.from_bytes(data[:8], "little") :] for site, data in models_of(federation).items()}


def undisturbed(make_federation: FederationMaker, settings: RunSettings, serve: Serve) -> tuple[dict[str, bytes], int]:
    """Return each site's model after a run that nothing disturbs, and how often it could have been killed."""
    federation, countdown = make(make_federation, settings, "undisturbed"), Countdown(1 << 30)
    serve(federation, countdown)
    return weights_of(federation), countdown.total - countdown.left


def go_on(federation: Federation, places: list[int], serve: Serve) -> int:
    """Serve a run, killing one server after another; return how many were killed."""
    killed = 0
    for place in places:
        try:
            serve(federation, Countdown(place))
        except Killed:
            killed += 1
        else:
            break
    run_with(federation, sites(federation))
    return killed


def check_whole(federation: Federation, models: Mapping[str, bytes]) -> None:
    """Check that nothing shows in a run that its server was killed."""
    assert weights_of(federation) == models
    assert {charges_of(federation, site) for site in SITES} == {ROUNDS}
    events = rounds_of(federation)
    assert [event["round"] for event in events] == list(range(1, ROUNDS + 1))
    assert all(event["released"] for event in events)
    assert read_results(federation).rounds == ROUNDS - sum(event.get("undone", False) for event in events)


@pytest.mark.parametrize("serve", [serve_to_a_write, serve_to_a_reply], ids=["write", "reply"])
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "part", [pytest.param(slice(None), marks=[pytest.mark.soak, pytest.mark.timeout(1800)]), slice(3, None, 17)]
)
def test_wherever_the_server_is_killed_the_run_ends_with_the_same_model_and_charges(
    make_federation: FederationMaker, name: str, serve: Serve, part: slice
) -> None:
    models, places = undisturbed(make_federation, RUNS[name], serve)
    for place in range(1, places + 1)[part]:
        federation = make(make_federation, RUNS[name], f"killed-{place}")
        assert go_on(federation, [place], serve) == 1
        check_whole(federation, models)


def test_a_run_survives_one_kill_after_another(make_federation: FederationMaker) -> None:
    models, places = undisturbed(make_federation, MASKED, serve_to_a_reply)
    federation = make(make_federation, MASKED, "killed")
    assert go_on(federation, [places // 3] * 5, serve_to_a_reply) >= 3
    check_whole(federation, models)


def test_a_disk_that_is_full_in_a_round_costs_nothing_once_there_is_room(make_federation: FederationMaker) -> None:
    models, _ = undisturbed(make_federation, MASKED, serve_to_a_reply)
    federation, honest, left = make(make_federation, MASKED, "full"), client_app, [len(SITES)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def answer(message: Message, context: Context) -> Message:
        left[0] -= message.metadata.message_type == REVEAL.name
        if not left[0]:  # the sum is next
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
        return honest(message, context)

    try:
        with pytest.raises(StorageError, match=r"store\.sqlite: "):
            run_with(federation, answer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with opened_store(federation) as (store, run):
        assert store.run(run).status == "running"  # a supervisor that starts the server again needs no --retry
    run_with(federation)
    check_whole(federation, models)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"run": 1}', b"[" * 10_000])
def test_a_damaged_state_is_refused_with_what_to_do(make_federation: FederationMaker, damage: bytes) -> None:
    federation = make_federation(PLAIN)
    with suppress(Killed):
        serve_to_a_reply(federation, Countdown(12))
    with opened_store(federation) as (store, run):
        store.record(run).write_state(damage, 0)
    with pytest.raises(
        RunError, match=r"store.sqlite, run .*restore the newest copy from the server's backup, or sign the run again"
    ):
        run_with(federation)
    with opened_store(federation) as (store, run):
        assert store.record(run).state() == damage
