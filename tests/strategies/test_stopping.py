"""A run that would be charged again for nothing is stopped, and a site that is not ready is left out by name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from client.work.training import Study
from privacy.errors import RunError
from strategies.open_round import OpenRound
from tests import studies
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    FederationMaker,
    charges_of,
    models_of,
    rounds_of,
    run_with,
    task_name,
    with_deadline,
)
from tests.privacy.consortium import make_plan
from tests.strategies.hostile import EVALUATE, HONEST, HOSTILE, QUERY, answering
from transport.flower import reply
from transport.run_messages import pack_readiness, read_readiness

if TYPE_CHECKING:
    from typing import Any

    from flwr.app import Message

BROKEN = replace(NOISY, task=task_name(studies.Broken), rounds=9)


def test_a_run_ends_if_its_first_round_is_charged_and_releases_nothing(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.Broken, "bugs", 99)
    federation = make_federation(BROKEN)
    with pytest.raises(RunError, match=r"round 1 was charged and released nothing: .*north: .*unexpected error"):
        run_with(federation)
    assert [charges_of(federation, site) for site in SITES] == [1, 1, 1, 1]


def test_a_later_round_is_repeated_once_and_ends_the_run_if_the_problems_stay(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(BROKEN)

    def break_all(message: Message, genuine: Message) -> Message:
        del message
        studies.Broken.bugs = 99
        return genuine

    monkeypatch.setattr(studies.Broken, "bugs", 0)
    with pytest.raises(RunError, match="round 3 was charged and released nothing"):
        run_with(federation, answering(federation, EVALUATE, HOSTILE, break_all))
    assert [event["released"] for event in rounds_of(federation)] == [True, False, False]
    assert [charges_of(federation, site) for site in SITES] == [3, 3, 3, 3]
    assert set(models_of(federation)) == set(SITES)

    for _ in range(2):  # as a supervisor would that starts it again
        with pytest.raises(
            RunError, match=r"this run failed: round 3 was charged.*once the cause is corrected.*--retry"
        ):
            run_with(federation)
    assert [charges_of(federation, site) for site in SITES] == [3, 3, 3, 3]
    monkeypatch.setattr(studies.Broken, "bugs", 0)
    *_, last = run_with(federation, retry=True)
    assert (last["round"], last["released"]) == (BROKEN.rounds, True)
    assert len(set(models_of(federation).values())) == 1


def test_a_run_goes_on_after_a_later_round_that_failed_once(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(replace(BROKEN, rounds=3))

    def break_some(message: Message, genuine: Message) -> Message:
        if message.metadata.group_id == "1":
            studies.Broken.bugs = 2
        return genuine

    monkeypatch.setattr(studies.Broken, "bugs", 0)
    first, second, third = run_with(federation, answering(federation, EVALUATE, HOSTILE, break_some))
    assert (first["released"], second["released"], third["released"]) == (True, False, True)
    assert third["cohort"] == sorted(SITES)


def test_the_cause_of_a_failed_round_decides_whether_it_is_repeated() -> None:
    plan = make_plan("ab" * 32)
    before, refused = OpenRound(1), {"north": "no", "south": "no"}
    lost = OpenRound(2, plan=plan, contributors=("east", "west"), refused=refused)
    for again in (lost, replace(lost, contributors=("east",))):
        with pytest.raises(RunError, match="round 2 was charged and released nothing: north: no; south: no"):
            again.check_repeated(before, started=False)
    with pytest.raises(RunError, match="round 3"):
        replace(lost, number=3).check_repeated(lost, started=True)
    lost.check_repeated(before, started=True)  # once more, as it went well before
    replace(lost, refused=refused | {"north": "busy"}).check_repeated(lost, started=True)
    for other in (
        before,  # nothing was charged
        replace(lost, contributors=()),  # others were silent
        replace(lost, contributors=SITES),  # lost after it was complete
        replace(lost, released=True),
    ):
        other.check_repeated(before, started=False)


def test_a_site_whose_disk_fails_is_asked_again_and_left_out_until_it_is_repaired(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(with_deadline(replace(NOISY, rounds=2), 20.0))
    outbox, release = federation.paths[HOSTILE] / "outbox", Study.release

    def spoiling(self: Study, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - what it returns
        if self._site.name == HOSTILE:
            outbox.rename(outbox.with_name("elsewhere"))
            outbox.write_text("")
        return release(self, *arguments, **named)

    monkeypatch.setattr(Study, "release", spoiling)
    first, second = run_with(federation)
    assert first["cohort"] == sorted(SITES)
    assert first["sites"] == second["cohort"] == second["sites"] == HONEST
    assert second["problems"][HOSTILE].startswith("“A disk is full")
    assert charges_of(federation, HOSTILE) == 1


@pytest.mark.parametrize(("seconds", "way"), [(-3600.0, "behind"), (3600.0, "ahead of")])
def test_a_site_whose_clock_disagrees_is_left_out_by_name_and_the_others_go_on(
    make_federation: FederationMaker, seconds: float, way: str
) -> None:
    federation = make_federation(SETTINGS)

    def shift(message: Message, genuine: Message) -> Message:
        readiness = read_readiness(genuine.content)
        return reply(pack_readiness(replace(readiness, clock=readiness.clock + seconds)), message)

    (event,) = run_with(federation, answering(federation, QUERY, HOSTILE, shift))
    assert re.match(rf"west's clock is 3[56]\d\d s {way} the server's: it shows", event["problems"][HOSTILE])
    assert event["cohort"] == event["sites"] == HONEST
    assert charges_of(federation, HOSTILE) == 0
