"""Who is silent costs a run one deadline; whatever a reply is, the round goes on; a run begins with all its sites."""

from collections.abc import Callable, Generator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from threading import Event

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from privacy.run.settings import RunSettings
from simulations.engine.inline import InlineGrid
from simulations.engine.results import read_events
from strategies.ceremony import Ceremony
from tests.federations import (
    SETTINGS,
    SITES,
    Answer,
    FederationMaker,
    node_of,
    run_with,
    with_deadline,
)
from tests.strategies.hostile import EVALUATE, QUERY, TRAIN
from transport.flower import reply
from transport.key_messages import pack_keys
from transport.messages import ACCEPT, LEAD

EAST = "east"
OTHERS = ["north", "south", "west"]
DEADLINE = 3.0  # seconds
ROUNDS = 4
MASKED = replace(SETTINGS, encryption=replace(SETTINGS.encryption, collusion_resistant=True))


# --- Sites that are silent ------------------------------------------------------------------------------------------

Passes = Callable[[Message], bool]


class DeafGrid(InlineGrid):
    """Some messages are never answered. Whoever waits for them does."""

    def __init__(self, run_id: int, nodes: dict[int, Context], app: Answer) -> None:
        super().__init__(run_id, nodes, app)
        self.passes: Passes = lambda _: False
        self.waited = 0.0  # seconds
        self.looks = 0

    @override
    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return super().get_node_ids()

    @override
    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        heard = {name for name in waiting if name in self._sent and not self.passes(self._sent[name])}
        message = super()._next(heard, seconds)
        if message is None and seconds > 0:
            Event().wait(seconds)
            self.waited += seconds
        return message


@dataclass
class Deaf:
    """Makes such a grid, and has it when the run is over."""

    passes: Passes
    grids: list[DeafGrid] = field(default_factory=list)

    def __call__(self, run_id: int, nodes: dict[int, Context], app: Answer) -> DeafGrid:
        self.grids.append(DeafGrid(run_id, nodes, app))
        self.grids[0].passes = self.passes
        return self.grids[0]


@pytest.mark.parametrize(
    ("kind", "run"), [(TRAIN, SETTINGS), (EVALUATE, SETTINGS), ("", SETTINGS), (TRAIN, MASKED)],
    ids=["train", "evaluate", "anything", "train, masked"],
)  # fmt: skip
def test_a_site_that_never_answers_costs_one_deadline_in_a_whole_run(
    make_federation: FederationMaker, kind: str, run: RunSettings
) -> None:
    federation = make_federation(with_deadline(replace(run, rounds=ROUNDS), DEADLINE))
    east = node_of(federation, EAST)
    deaf = Deaf(lambda message: message.metadata.dst_node_id == east and message.metadata.message_type.startswith(kind))
    events = run_with(federation, make_grid=deaf)
    assert [event["released"] for event in events] == [True] * ROUNDS
    assert all(set(OTHERS) <= set(event["sites"]) for event in events)
    assert deaf.grids[0].waited <= DEADLINE
    assert deaf.grids[0].looks < 100  # how often `gather` looks within one deadline, and a few times a round
    if kind != EVALUATE:
        assert all(event["problems"][EAST] for event in events)


@pytest.mark.parametrize("run", [SETTINGS, MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("kind", [TRAIN, EVALUATE])
def test_a_site_that_was_silent_once_is_back_as_soon_as_it_answers(
    make_federation: FederationMaker, run: RunSettings, kind: str
) -> None:
    federation = make_federation(with_deadline(replace(run, rounds=4), 4.0))
    east = node_of(federation, EAST)
    deaf = Deaf(
        lambda message: (
            (message.metadata.dst_node_id, message.metadata.message_type, message.metadata.group_id)
            == (east, kind, "2")
        )
    )
    events = run_with(federation, make_grid=deaf)
    without = [set(SITES) - set(event["sites"]) for event in events]
    assert without == [set(), {EAST} if kind == TRAIN else set(), set(), set()]
    assert events[-1]["problems"] == {}


# --- Whatever a reply is --------------------------------------------------------------------------------------------


def _from(node: int, message: Message) -> Message:
    """The same reply, as if it came from another node."""
    other = copy(message)
    other.__dict__["_metadata"] = copy(message.metadata)
    other.metadata.__dict__["_src_node_id"] = node
    return other


def _unasked(message: Message) -> Message:
    other = _from(4711, message)
    other.metadata.__dict__["_reply_to_message_id"] = "unheard of"
    return other


HARMLESS: dict[str, Callable[[Message, Message], list[Message]]] = {
    "as it is": lambda _, genuine: [genuine],
    "doubled": lambda _, genuine: [genuine, genuine],
    "with one that nobody asked for": lambda _, genuine: [_unasked(genuine), genuine],
    "with one of an unknown node": lambda _, genuine: [_from(12345, genuine), genuine],
    "and then an error": lambda question, genuine: [genuine, reply(Error(1, "no"), question)],
    "and then an error of the grid's": lambda question, genuine: [genuine, _from(1, reply(Error(3, "gone"), question))],
}
HARMFUL: dict[str, Callable[[Message, Message], list[Message]]] = {
    "lost": lambda *_: [],
    "an error": lambda question, _: [reply(Error(1, "no"), question)],
    "an error without a reason": lambda question, _: [reply(Error(1), question)],
    "an error of the grid's": lambda question, _: [_from(1, reply(Error(3, "the node is gone"), question))],
    "an error, and then the reply": lambda question, genuine: [reply(Error(1, "no"), question), genuine],
    "of an unknown node": lambda _, genuine: [_from(12345, genuine)],
    "of node 1": lambda _, genuine: [_from(1, genuine)],
    "empty": lambda question, _: [reply(RecordDict(), question)],
    "of another kind": lambda question, _: [reply(pack_keys(1, "0" * 64, {}, {}), question)],
}  # fmt: skip


NO_ANSWER = {"lost", "of an unknown node", "of node 1"}


class HostileGrid(InlineGrid):
    """Hands out something else than what the nodes replied."""

    def __init__(self, run_id: int, nodes: dict[int, Context], app: Answer) -> None:
        super().__init__(run_id, nodes, app)
        self.change: Callable[[Message, Message], list[Message]] = lambda _, genuine: [genuine]
        self._messages: dict[str, Message] = {}

    @override
    def _send(self, message: Message) -> None:
        super()._send(message)
        self._messages[message.metadata.message_id] = message

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._changed(super().pull_messages(message_ids))

    @override
    def _replies(self, waiting: set[str], deadline: float) -> Generator[Message, None, None]:
        yield from self._changed(super()._replies(waiting, deadline))

    def _changed(self, replies: Iterable[Message]) -> Iterator[Message]:
        for genuine in replies:
            yield from self.change(self._messages[genuine.metadata.reply_to_message_id], genuine)


@pytest.mark.slow
@settings(max_examples=4)
@given(
    st.lists(st.sampled_from([*HARMLESS, *HARMFUL]), min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(HARMLESS)), min_size=1, max_size=4),
)
def test_rounds_continue_whatever_a_grid_returns_as_replies(
    federation_keys: Path, of_one: list[str], of_others: list[str]
) -> None:
    with TemporaryDirectory() as folder:
        federation = FederationMaker(federation_keys, Path(folder))(replace(SETTINGS, rounds=2))
        for path in federation.paths.values():
            rmtree(path / "keys" / "epochs", ignore_errors=True)  # so that the sites make keys as well
        east, turn = node_of(federation, EAST), [0]

        def change(question: Message, genuine: Message) -> list[Message]:
            turn[0] += 1
            if question.metadata.dst_node_id == east:
                name = of_one[turn[0] % len(of_one)]
                if question.metadata.message_type == QUERY and name in NO_ANSWER:
                    name = "an error"  # the first round waits for an answer as long as the manifest says
                return (HARMLESS | HARMFUL)[name](question, genuine)
            return HARMLESS[of_others[turn[0] % len(of_others)]](question, genuine)

        def hostile(run_id: int, nodes: dict[int, Context], app: Answer) -> HostileGrid:
            grid = HostileGrid(run_id, nodes, app)
            grid.change = change
            return grid

        events = run_with(federation, make_grid=hostile)
        assert [event["released"] for event in events] == [True, True]
        assert all(set(OTHERS) <= set(event["sites"]) for event in events)


# --- Who leads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LEAD.name, ACCEPT.name])
def test_a_leader_that_failed_is_not_asked_to_lead_again_before_the_others(
    make_federation: FederationMaker, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(with_deadline(replace(SETTINGS, rounds=3), 2.0))
    asked_sites: list[str] = []
    names = {node_of(federation, site): site for site in SITES}
    agree = Ceremony.agree

    def anew(self: Ceremony, grid: Grid, sites: list[str], minimum: int) -> tuple[int, str, list[str]]:
        self._wanted = True  # as `--new-epoch` does, in every round
        return agree(self, grid, sites, minimum)

    def passes(message: Message) -> bool:
        if message.metadata.message_type == LEAD.name:
            asked_sites.append(names[message.metadata.dst_node_id])
        if kind == LEAD.name:
            return message.metadata.message_type == LEAD.name and asked_sites[-1] == EAST
        return message.metadata.message_type == ACCEPT.name and asked_sites[-1] == EAST

    monkeypatch.setattr(Ceremony, "agree", anew)
    events = run_with(federation, make_grid=Deaf(passes))
    leaders = [event["leader"] for event in read_events(federation) if event["event"] == "epoch"]
    assert len(leaders) == 3
    assert EAST not in leaders
    assert [event["released"] for event in events] == [True] * 3


# --- How a run begins -----------------------------------------------------------------------------------------------


class ArrivingGrid(InlineGrid):
    """Its nodes come online one after the other; some do not come at all."""

    def __init__(self, run_id: int, nodes: dict[int, Context], app: Answer, missing: int = 0) -> None:
        super().__init__(run_id, nodes, app)
        self._missing, self._looks = missing, 0

    @override
    def get_node_ids(self) -> Iterable[int]:
        self._looks += 1
        return sorted(self._nodes)[self._missing :][: self._looks // 5]


def test_the_first_round_waits_for_all_sites_that_the_run_lists(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(SETTINGS, rounds=2))
    events = run_with(federation, make_grid=ArrivingGrid)
    assert [event["cohort"] for event in events] == [sorted(SITES)] * 2
    assert [event["problems"] for event in events] == [{}, {}]


def test_an_absent_site_is_named_and_awaited_in_the_first_round_only(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(with_deadline(replace(SETTINGS, rounds=3), 5.0))
    missing = min(SITES, key=lambda site: node_of(federation, site))
    grids: list[ArrivingGrid] = []

    def arriving(run_id: int, nodes: dict[int, Context], app: Answer) -> ArrivingGrid:
        grids.append(ArrivingGrid(run_id, nodes, app, missing=1))
        return grids[0]

    events = run_with(federation, make_grid=arriving)
    assert [event["cohort"] for event in events] == [sorted(set(SITES) - {missing})] * 3
    assert [event["problems"] for event in events] == [{missing: "it is not online"}] * 3
    assert grids[0]._looks < 120  # within one deadline


def test_a_round_does_not_wait_for_a_site_that_declined(make_federation: FederationMaker) -> None:
    federation = make_federation(SETTINGS)  # with a deadline of a minute, and a test's timeout of two

    def answer(message: Message, context: Context) -> Message:
        from client.flower import app  # noqa: PLC0415

        refusing = (message.metadata.dst_node_id, message.metadata.message_type) == (node_of(federation, EAST), QUERY)
        return reply(Error(100, "not now"), message) if refusing else app(message, context)

    (event,) = run_with(federation, answer)
    assert event["cohort"] == OTHERS
    assert event["problems"] == {EAST: "“not now”"}
