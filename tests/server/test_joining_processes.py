"""From nothing to a model at every site, in processes: found, invite and join, serve, attend, all through recorders."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli import app
from privacy.run.invitation import read_invitation
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.private_keys import forms_of_private_keys
from tests.server.relays import Relay

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

SITES = ("north", "south", "east")
LONG = 90.0  # seconds; starting an agent takes a few, on a busy machine more
RUN = """\
name = "study"
task = "tests.studies:Tiny"
rounds = 1
[training]
steps_per_round = 1
sample_rate = 1.0
learning_rate = 0.1
[privacy]
max_grad_norm = 1.0
noise_multiplier = 2.0
[encryption]
update_bound = 1.0
[cohort]
minimum = 3
round_deadline_seconds = 60
[cohort.sizes]
north = 20
south = 20
east = 20
"""


def cloister(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def recorders() -> Iterator[tuple[Relay, Relay]]:
    """What passes the agents' port and the joining port is recorded."""
    relays = Relay(unused_port()), Relay(unused_port())
    for relay in relays:
        relay.record = True
    yield relays
    for relay in relays:
        relay.close()


def fill_in(site: str) -> None:
    """Edit a site's `site.toml`, as its engineer does, and put its records where it says."""
    path = Path(site, "site.toml")
    text = path.read_text(encoding="utf-8").replace("tasks = []", 'tasks = ["tests.studies:Tiny"]')
    path.write_text(re.sub(r"epsilon = \d\.\d", "epsilon = 30.0", text), encoding="utf-8")
    rows = [f"{number % 5},{number % 7},{number % 3}" for number in range(25)]
    Path(site, "records.csv").write_text("\n".join(["a,b,y", *rows, ""]), encoding="utf-8")


def test_from_nothing_to_the_same_model_at_every_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorders: tuple[Relay, Relay]
) -> None:
    monkeypatch.chdir(tmp_path)
    agents, joining = recorders
    start = time.monotonic()
    cloister("init", "lungs", "--host", "localhost", "--online",
             "--port", str(agents.port), "--joining-port", str(joining.port))  # fmt: skip
    settings = Path("server/consortium.toml")
    text = settings.read_text(encoding="utf-8")  # behind the recorders, the server has other ports
    for relay in recorders:
        text = text.replace(str(relay.port), str(relay._server))
    settings.write_text(text, encoding="utf-8")
    with ForkedAgents() as processes:
        processes.start("joining", Path("joining.log"), "server", "server")
        processes.wait_for_line("joining", "sites may join at port ", LONG)
        for site in SITES:
            cloister("invite", site)
            token = Path(f"{site}.invitation").read_text(encoding="utf-8").strip()
            processes.start(site, Path(f"{site}.log"), "join", token)
            processes.wait(site, LONG)
            fill_in(site)
        processes._children["joining"][0].terminate()
        processes._children["joining"][0].wait(LONG)
        Path("run.toml").write_text(RUN, encoding="utf-8")
        cloister("sign", "run.toml")
        processes.start("server", Path("server.log"), "server", "server", "run.manifest")
        for site in SITES:
            processes.start(site, Path(f"{site}-agent.log"), "agent", site)
        processes.wait("server", LONG)
        print(f"{time.monotonic() - start:.1f} s from nothing to a model")  # noqa: T201 - for whoever measures it
    models = {site: next(Path(site, "models").rglob("*.safetensors")).read_bytes() for site in SITES}
    assert len(set(models.values())) == 1
    assert json.loads(cloister("roster", "show", "--json"))["version"] == 3
    for site in SITES[:2]:  # which joined before the last one
        assert "took roster 3, of 3 sites" in Path(f"{site}-agent.log").read_text(encoding="utf-8")

    passed = bytes(agents.seen), bytes(joining.seen)
    assert min(map(len, passed)) > 10_000
    secrets = [form for site in SITES for form in forms_of_private_keys(Path(site))]
    for site in SITES:
        secret = read_invitation(Path(f"{site}.invitation").read_text(encoding="utf-8")).secret
        secrets += [secret.encode(), bytes.fromhex(secret)]
    for data in passed:
        assert not any(secret in data for secret in secrets)
