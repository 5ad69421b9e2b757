"""Both of our grids, each with two nodes or more that answer with any app."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from flwr.app import Context, RecordDict

from client.agent import answer_all
from client.exchange import Exchange
from privacy.errors import UnreachableError
from server.hub.grid import GrpcGrid
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from simulations.engine.inline import InlineGrid
from tests.federations import Answer, await_condition, tls_of

RUN = 7
LONG = 20.0  # seconds; a deadline that only a failure reaches
NODES = ("north", "south")


def inline_grid(app: Answer, nodes: int = len(NODES)) -> InlineGrid:
    """A grid in this process."""
    contexts = {number: Context(RUN, number, {}, RecordDict(), {}) for number in range(11, 11 + nodes)}
    return InlineGrid(RUN, contexts, app)


@contextmanager
def grpc_grid(folder: Path, app: Answer, sites: tuple[str, ...] = NODES) -> Iterator[GrpcGrid]:
    """A hub, and an agent's connection to it for each site."""
    federation = Federation.create(folder / "federation", sites)
    place = read_consortium(federation.server)
    roster = place.roster()
    mailboxes = Mailboxes({member.node_id for member in roster.members})
    hub, stop = Hub(roster, mailboxes, 64 << 20), Event()
    address = f"localhost:{hub.start('localhost:0', place.tls)}"

    def attend(site: str) -> None:
        context = Context(RUN, roster.member(site).node_id, {}, RecordDict(), {})
        # The line breaks when the test is over.
        with suppress(UnreachableError), Exchange(address, tls_of(federation, site)) as exchange:
            answer_all(exchange, app, context, stop)

    agents = [Thread(target=attend, args=[site], name=site) for site in sites]
    for agent in agents:
        agent.start()
    grid = GrpcGrid(RUN, mailboxes)
    try:
        await_condition(lambda: len(list(grid.get_node_ids())) == len(sites))
        yield grid
    finally:
        stop.set()
        hub.stop(grace=0)
        for agent in agents:
            agent.join(LONG)
    assert not any(agent.is_alive() for agent in agents)
