"""`cloister login`, `submit`, `runs`, `watch`, `stop`, `retry`, and `cloister.Client`, with a real API over TLS."""

from __future__ import annotations

import json
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cloister as public
from cloister import client as client_module
from privacy.errors import (
    AuthenticityError,
    CloisterError,
    ConfigError,
    KeyFileError,
    MalformedError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from privacy.run.manifest import open_run
from simulations.engine.federation import Federation
from strategies.event_lines import line_of
from tests.federations import await_condition
from tests.server.api.consortia import Consortium, Status, serving, set_api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cloister.in_process import Run
    from tests.server.api.consortia import Server

SECONDS = 30.0


@pytest.fixture(scope="module")
def server(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    consortium = Consortium.make(federation_keys, tmp_path_factory.mktemp("runs") / "consortium")
    set_api(consortium)
    with serving(consortium) as server:
        yield server


@pytest.fixture
def rosa(server: Server) -> Iterator[public.Client]:
    with public.Client(server.consortium.path("rosa"), server.address) as client:
        yield client


def signed(server: Server, name: str, person: str = "rosa") -> Path:
    path = server.consortium.folder / f"{name}.manifest"
    path.write_bytes(server.consortium.sign(name, person))
    return path


def record(server: Server, digest: str, *events: dict[str, Any]) -> None:
    for event in events:
        server.store.record(digest).append({"time": 1.0, **event})


STARTED = {"event": "started", "sites": ["north", "south"], "rounds": 2, "ended": 0}
ROUND = {
    "event": "round", "round": 1, "released": True, "sites": ["north", "south"], "epsilon": {"north": 0.5},
    "bytes_up": 2048, "seconds": 0.25, "problems": {}, "metrics": {"loss": 0.125},
}  # fmt: skip


# --- Commands -------------------------------------------------------------------------------------------------------


def test_a_person_signs_in_submits_lists_watches_stops_and_signs_out(server: Server, cloister: Run) -> None:
    folder, run = server.consortium.path("rosa"), signed(server, "lungs")
    login = cloister("login", "--as", folder, "--api", server.address)
    assert login.stdout.startswith(f"✓ signed in to {server.address} as rosa, researcher, until ")
    session = folder / "session.json"
    assert stat.S_IMODE(session.stat().st_mode) == 0o600

    submitted = cloister("submit", run, "--as", folder)  # which remembers the address
    digest = open_run(run.read_bytes(), server.queue.roster()).digest
    assert submitted.stdout == f"✓ lungs {digest[:8]} is waiting\nnext: cloister watch {digest[:8]} --as {folder}\n"
    (listed,) = json.loads(cloister("runs", "--as", folder, "--status", "waiting", "--json").stdout)["runs"]
    assert (listed["digest"], listed["by"]) == (digest, "rosa")
    assert f"{digest[:8]}  waiting      0/1" in cloister("runs", "--as", folder).stdout

    server.store.mark(digest, "running")
    record(server, digest, STARTED, ROUND)
    server.store.mark(digest, "finished")
    watched = cloister("watch", "lungs", "--as", folder)
    assert watched.returncode == 0
    assert [line.split()[:2] for line in watched.stdout.splitlines()] == [
        ["round", "sites"], ["1", "2/2"], ["✓", "lungs"]
    ]  # fmt: skip
    assert json.loads(cloister("watch", "lungs", "--as", folder, "--json").stdout)["status"] == "finished"

    again = cloister("stop", "lungs", "--as", folder, "--reason", "wrong task")
    assert (again.returncode, "lungs has already finished, so it cannot be stopped" in again.stderr) == (1, True)
    assert cloister("login", "--logout", "--as", folder).stdout == f"✓ signed out of {server.address}\n"
    assert json.loads(session.read_text())["token"] == ""
    assert server.store.sessions.of("rosa") == []


def test_a_run_is_stopped_and_whoever_watches_it_learns_why(server: Server, cloister: Run) -> None:
    rosa, otto = server.consortium.path("rosa"), server.consortium.path("otto")
    run = cloister("submit", signed(server, "stopped"), "--as", rosa, "--api", server.address, "--json")
    digest = json.loads(run.stdout)["digest"]
    stopped = cloister("stop", digest[:9], "--as", otto, "--api", server.address, "--reason", "wrong task")
    assert stopped.stdout == f"✓ stopped {digest[:8]} stops\n"
    watched = cloister("watch", digest, "--as", rosa)
    assert watched.returncode == 1
    assert watched.stdout.splitlines()[-1] == (
        f"✗ stopped {digest[:8]} was stopped; 0 of 1 rounds released a model: wrong task"
    )


def test_a_failed_run_goes_on_when_an_operator_says_so(server: Server, cloister: Run) -> None:
    run = signed(server, "failing")
    digest = server.queue.submit(run.read_bytes(), "rosa").digest
    server.store.mark(digest, "failed", "the disk is full")
    rosa, otto = (("--as", server.consortium.path(name), "--api", server.address) for name in ("rosa", "otto"))
    refused = cloister("retry", "failing", *rosa)
    assert (refused.returncode, "rosa is researcher" in refused.stderr) == (1, True)
    assert "          the disk is full\n" in cloister("runs", *rosa).stdout
    assert "  reason    the disk is full\n" in cloister("runs", "failing", *rosa).stdout
    assert cloister("submit", run, *rosa).stdout == (
        f"! failing {digest[:8]} was submitted before, and failed; 0 of 1 rounds released a model: the disk is full\n"
        f"next: an operator or a coordinator may let it go on: cloister retry {digest[:8]}\n"
    )
    assert cloister("retry", "failing", *otto).stdout == f"✓ failing {digest[:8]} is waiting\n"
    server.store.mark(digest, "finished")
    again = cloister("submit", run, *rosa)
    assert (again.returncode, "was submitted before, and has finished" in again.stdout) == (0, True)
    assert "next: cloister sign RUN.toml, which makes a new run" in again.stdout


def test_one_run_is_shown_in_full(server: Server, cloister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = server.queue.submit(server.consortium.sign("shown"), "rosa").digest
    rosa = "--as", server.consortium.path("rosa"), "--api", server.address
    (row, times, rounds) = cloister("runs", "shown", *rosa).stdout.splitlines()
    assert row.startswith(f"{digest[:8]}  waiting ")
    assert times.startswith("  times     submitted 20")
    assert times.endswith(" UTC by rosa")
    assert rounds == "  rounds    0 of 1 released a model"
    server.store.mark(digest, "running")
    lost = ROUND | {"round": 2, "released": False, "seconds": 0.75, "problems": {"south": "it is not online"}}
    away = {"event": "away", "round": 3, "sites": ["south"], "since": 1.0e9, "until": 2.0e9}
    record(server, digest, STARTED | {"minimum": 2, "noise_multiplier": 1.5}, ROUND, lost, away)
    lines = cloister("runs", "shown", *rosa).stdout.splitlines()[2:]
    assert lines == [
        "  rounds    0 of 1 released a model; 0.50 s each, 4.1 kB of updates in all",
        "  sites     rounds of each: north 1, south 1; at least 2 in a round",
        "  noise     multiplier 1.5; ε spent over all runs, as reported: north 0.50",
        f"  waits     {line_of(away)}",
        "  problem   south: it is not online",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(server.queue, "status", lambda: Status(paused={digest: "the disk is full; make room on it"}))
        assert "  paused    the disk is full; make room on it" in cloister("runs", "shown", *rosa).stdout.splitlines()
    server.store.mark(digest, "stopped", "stopped by otto")
    shown = json.loads(cloister("runs", "shown", *rosa, "--json").stdout)
    assert (shown["sites"], shown["epsilon"], shown["waits_for"]) == ({"north": 1, "south": 1}, {"north": 0.5}, "")
    assert "; ended " in cloister("runs", "shown", *rosa).stdout
    record(server, digest, {"event": "round"})
    assert "another version of Cloister" in cloister("runs", "shown", *rosa).stderr


def test_ctrl_c_only_leaves_and_says_how_to_come_back(
    server: Server, cloister: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.consortium.path("rosa")
    digest = server.queue.submit(server.consortium.sign("left"), "rosa").digest

    def interrupted(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield STARTED
        raise KeyboardInterrupt

    monkeypatch.setattr(client_module.Client, "follow", interrupted)
    left = cloister("watch", "left", "--as", folder, "--api", server.address)
    assert left.returncode == 130
    assert "       waits for its turn\n" in left.stdout
    assert left.stderr == f"left; the run goes on. To come back: cloister watch {digest[:8]} --as {folder}\n"
    assert server.store.run(digest).status == "waiting"


def test_whoever_watches_a_run_that_waits_sees_which_goes_on_before_it(
    server: Server, cloister: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, before, behind = (
        server.queue.submit(server.consortium.sign(name), "rosa").digest for name in ("stopped", "first", "second")
    )
    server.store.mark(stopped, "stopped", "stopped by rosa")  # it may still deliver a sum, and does not block the queue
    server.store.mark(before, "running")
    monkeypatch.setattr(server.queue, "status", lambda: Status(running=(stopped, before)))

    def interrupted(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield STARTED
        raise KeyboardInterrupt

    monkeypatch.setattr(client_module.Client, "follow", interrupted)
    left = cloister("watch", behind, "--as", server.consortium.path("rosa"), "--api", server.address)
    says = f"waits for its turn, after first {before[:8]}\n"
    assert left.stdout.splitlines()[0] + "\n" == "       " + says


# --- The client -----------------------------------------------------------------------------------------------------


def test_a_client_submits_follows_and_fetches(server: Server, rosa: public.Client) -> None:
    run = rosa.submit(signed(server, "followed"))
    assert run == rosa.run("followed")
    assert rosa.submit(server.consortium.sign("bytes")).name == "bytes"
    record(server, run.digest, STARTED)
    events = rosa.follow(run.digest)
    assert next(events)["event"] == "started"
    record(server, run.digest, ROUND)
    assert next(events)["metrics"] == {"loss": 0.125}
    server.store.mark(run.digest, "finished")
    assert list(events) == []
    assert [event["event"] for event in rosa.events(run.digest)] == ["started", "round"]
    stated = rosa.statement(run.digest)
    assert (stated["run"], stated["signed"]["by"]) == (run.digest, {"name": "rosa", "role": "researcher"})
    assert stated["cost"]["epsilon"] == "infinite"  # this study has no noise
    assert (stated["outcome"]["sites"], stated["outcome"]["epsilon"]) == ({"north": 1, "south": 1}, {"north": 0.5})
    assert stated["outcome"]["model"] is None
    assert rosa.manifest(run.digest).signer.name == "rosa"
    assert rosa.status()["sites"]["north"] is True
    assert run.digest in {each.digest for each in rosa.runs()}
    with public.Client(server.consortium.path("aude"), server.address) as aude:
        assert aude.ledger_heads() == {}


def test_what_a_server_has_of_a_run_is_fetched_into_files(
    server: Server, rosa: public.Client, cloister: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rosa.submit(signed(server, "fetched"))
    record(server, run.digest, STARTED, ROUND)
    me = ("--as", str(server.consortium.path("rosa")), "--api", server.address)
    monkeypatch.chdir(tmp_path)
    for what, ending in (("manifest", "manifest"), ("events", "events.jsonl"), ("statement", "statement.json")):
        done = cloister("runs", "fetched", "--fetch", what, *me)
        assert (done.returncode, done.stdout) == (0, f"✓ fetched-{run.digest[:8]}.{ending}\n"), done.stderr
    data = {path.suffix: path.read_bytes() for path in tmp_path.iterdir()}
    assert data[".manifest"] == server.store.document(run.digest)
    assert [json.loads(line)["event"] for line in data[".jsonl"].splitlines()] == ["started", "round"]
    assert json.loads(data[".json"])["outcome"]["status"] == "waiting"
    record(server, run.digest, ROUND)
    for what in ("manifest", "events", "statement"):  # of the same run, from before
        assert cloister("runs", "fetched", "--fetch", what, *me).returncode == 0
    assert len(Path(f"fetched-{run.digest[:8]}.events.jsonl").read_text().splitlines()) == 3
    Path("mine").write_text("mine")
    Path("folder").mkdir()
    for arguments, why in {
        ("fetched", "--fetch", "manifest", "--out", "mine"): "exists already, and is another run",
        ("fetched", "--fetch", "events", "--out", "mine"): "exists already, and is another run",
        ("fetched", "--fetch", "statement", "--out", "mine"): "exists already, and is another run",
        ("fetched", "--fetch", "statement", "--out", "folder"): "exists already, and is another run",
        ("fetched", "--fetch", "model.safetensors"): "the server has none: have a site export it",
        ("fetched", "--fetch", "sums"): "fetch manifest, events or statement",
        ("--fetch", "events"): "name one run",
    }.items():
        done = cloister("runs", *arguments, *me)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    assert Path("mine").read_text() == "mine"
    hostile = replace(run, name="../lungs")
    monkeypatch.setattr(client_module.Client, "run", lambda *_: hostile)
    assert "cannot be a file's name" in cloister("runs", "fetched", "--fetch", "events", *me).stderr


def test_a_server_that_sends_the_same_events_for_ever_is_told_apart(rosa: public.Client, server: Server) -> None:
    digest = server.queue.submit(server.consortium.sign("endless"), "rosa").digest
    page = {"events": [{"number": 3, "event": STARTED}], "next": 3, "status": "running"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rosa._session, "ask", lambda *_: json.dumps(page).encode())
        with pytest.raises(MalformedError, match="in a form that"):
            list(rosa.events(digest))


def test_what_is_refused_is_an_error_of_its_kind(server: Server, rosa: public.Client) -> None:
    digest = server.queue.submit(server.consortium.sign("refused", "founder"), "founder").digest
    cases: list[tuple[Callable[[], object], type[CloisterError], str]] = [
        (lambda: rosa.run("nothing"), NotFoundError, "there is no run “nothing”"),
        (lambda: rosa.run("../status"), MalformedError, "is no run"),
        (lambda: rosa.stop(digest), RefusedError, "only coordinators and operators may do this"),
        (lambda: rosa.submit(b"x"), MalformedError, "not a signed Cloister manifest"),
        (lambda: list(rosa.runs("fialed")), ConfigError, "is no status of a run; write waiting, running"),
        (lambda: rosa.submit("absent.manifest"), KeyFileError, "absent.manifest: no such file"),
        (lambda: rosa.submit(bytes((4 << 20) + 1)), MalformedError, "at most 4 MiB"),
        (lambda: rosa.submit(server.consortium.sign("x", "otto")), RefusedError, "only coordinators and researchers"),
        (rosa.ledger_heads, RefusedError, "only auditors"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()


def test_signing_in_takes_the_newest_roster_and_no_older_one(
    federation_keys: Path, tmp_path: Path, cloister: Run
) -> None:
    consortium = Consortium.make(federation_keys, tmp_path / "consortium")
    set_api(consortium)
    old = (consortium.server / "roster").read_bytes()
    with serving(consortium) as server:
        login = ("login", "--as", consortium.path("rosa"), "--api", server.address)
        consortium.remove("otto")
        assert cloister(*login).returncode == 0
        taken = (consortium.path("rosa") / "keys" / "roster").read_bytes()
        assert taken == (consortium.server / "roster").read_bytes() != old
        with public.Client(consortium.path("founder"), server.address) as founder:
            assert founder.take_roster() == server.queue.roster().version
        (consortium.server / "roster").write_bytes(old)
        refused = cloister(*login)
    assert (refused.returncode, "is older than the one here" in refused.stderr) == (1, True)
    assert (consortium.path("rosa") / "keys" / "roster").read_bytes() == taken


def test_a_session_that_was_ended_elsewhere_is_begun_anew(server: Server, rosa: public.Client) -> None:
    assert rosa.login()["person"] == "rosa"
    with server.http(rosa.token) as http:
        assert http.delete("/v1/sessions/current").is_success
    assert rosa.status()["consortium"] == "demo"


def test_whoever_watches_a_run_that_pauses_sees_why_no_events_come(
    server: Server, cloister: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = server.queue.submit(server.consortium.sign("paused"), "rosa").digest

    def cut_off(*_: object, on_lost: Callable[[], object], **__: object) -> Iterator[dict[str, Any]]:
        on_lost()
        yield STARTED
        raise KeyboardInterrupt

    monkeypatch.setattr(client_module.Client, "follow", cut_off)
    why = "store.sqlite: the disk is full; make room on it"
    for paused, said in (
        ({digest: why}, f"cannot go on at the moment: {why}"),
        ({}, "the connection to the server was"),
    ):
        monkeypatch.setattr(server.queue, "status", lambda paused=paused: Status(paused=paused))
        watched = cloister("watch", digest, "--as", server.consortium.path("rosa"), "--api", server.address)
        assert said in watched.stdout


def test_a_lost_connection_is_made_again_without_losing_an_event(
    federation_keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = Consortium.make(federation_keys, tmp_path / "consortium")
    set_api(consortium)
    with serving(consortium) as server:
        port = server.port.port
        digest = server.queue.submit(consortium.sign("long"), "rosa").digest
        server.store.mark(digest, "running")
        record(server, digest, STARTED)
        client = public.Client(consortium.path("rosa"), server.address)
        said = list[str]()
        events = client.follow(digest, on_lost=lambda: said.append("lost"))
        assert next(events)["event"] == "started"
    settings = consortium.server / "consortium.toml"
    settings.write_text(
        settings.read_text().replace('[api]\nlisten = "localhost:0"', f'[api]\nlisten = "localhost:{port}"')
    )
    monkeypatch.setattr(client_module, "_PAUSES", (0.05,))
    seen = list[str]()
    following = threading.Thread(target=lambda: seen.extend(event["event"] for event in events))
    following.start()
    await_condition(lambda: said == ["lost"], SECONDS)
    with serving(consortium) as server:
        record(server, digest, ROUND, {"event": "finished"})
        server.store.mark(digest, "finished")
        following.join(SECONDS)
    client.close()
    assert seen == ["round", "finished"]
    assert said == ["lost"]


def test_a_server_that_is_not_there_or_not_ours_is_named(server: Server, tmp_path: Path) -> None:
    folder = server.consortium.path("rosa")
    with (
        public.Client(folder, "localhost:1") as client,
        pytest.raises(UnreachableError, match="nothing listens at this"),
    ):
        client.status()
    Federation.create(tmp_path / "other", ("north",), "other")
    with (
        public.Client(tmp_path / "other" / "coordinator", server.address) as client,
        pytest.raises(AuthenticityError, match="did not issue"),
    ):
        client.status()
    with (
        public.Client(folder, server.address.replace("localhost", "127.0.0.1")) as client,
        pytest.raises(AuthenticityError, match="a certificate for another name"),
    ):
        client.status()
    with pytest.raises(ConfigError, match="no such folder"):
        public.Client(tmp_path / "nobody")
    with pytest.raises(MalformedError, match="is not an address"):
        public.Client(folder, "https://x")


def test_a_run_that_nobody_signed_is_not_sent(rosa: public.Client, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text('name = "x"\n')
    with pytest.raises(MalformedError, match=r"is not signed; submit what `cloister sign .*study.toml` writes"):
        rosa.submit(study)


def test_text_from_the_server_is_plain(server: Server, rosa: public.Client, cloister: Run) -> None:
    digest = server.queue.submit(server.consortium.sign("plain"), "rosa").digest
    hostile = {"event": "failed", "reason": "\x1b[2J\u202e", "bad\nname": ["\r"]}
    server.store.record(digest).append(hostile)
    server.store.mark(digest, "failed")
    (event,) = rosa.follow(digest)
    assert event == {"event": "failed", "reason": "\\x1b[2J\\u202e", "bad\\nname": ["\\r"]}
    watched = cloister("watch", digest, "--as", server.consortium.path("rosa"), "--api", server.address)
    assert "\x1b" not in watched.stdout


def test_events_of_another_version_end_in_a_sentence(server: Server, cloister: Run) -> None:
    digest = server.queue.submit(server.consortium.sign("odd"), "rosa").digest
    record(server, digest, {"event": "round"})
    watched = cloister("watch", digest, "--as", server.consortium.path("rosa"), "--api", server.address)
    assert watched.returncode == 1
    assert "sends events of another version" in watched.stderr


def deep(text: str) -> bytes:
    """Return JSON that nests lists, beyond what Python follows."""
    return b'{"a": ' + b"[" * 700 + text.encode() + b"]" * 700 + b"}"


@pytest.mark.parametrize(
    "sent",
    [deep("1"), deep("") * 2, b"id: 1\ndata: %s\n\n" % deep("1"), b"id: " + b"9" * 5000 + b"\ndata: {}\n\n"],
    ids=["deep", "two", "deep event", "long number"],
)
def test_what_no_server_of_ours_says_ends_in_a_sentence(
    sent: bytes, rosa: public.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rosa._session, "ask", lambda *_: sent)
    monkeypatch.setattr(rosa._session, "stream", lambda *_: iter([sent]))
    with pytest.raises(MalformedError, match="answers in a form that"):
        list(rosa.follow("lungs")) if b"id: " in sent else rosa.status()


def test_empty_pages_end_a_list(rosa: public.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosa._session, "ask", lambda *_: b'{"runs": [], "events": [], "next": 1}')
    assert list(rosa.events("lungs")) == []
    monkeypatch.setattr(rosa._session, "ask", lambda *_: b'{"runs": [], "next": "ab"}')
    assert list(rosa.runs()) == []


def test_another_run_than_was_asked_for_is_not_taken(
    server: Server, rosa: public.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, other = (rosa.submit(signed(server, name)).digest for name in ("wanted", "other"))
    document = server.store.document(other)
    assert rosa.manifest(other[:12]).digest == rosa.manifest("othe").digest == other
    monkeypatch.setattr(rosa._session, "ask", lambda *_: document)
    with pytest.raises(AuthenticityError, match="answers with another run than"):
        rosa.manifest(wanted)
