"""Sites behind a proxy that ends TLS: a real nginx, with the configuration that docs/network.md gives."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from threading import Event, Thread
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.checks import check_site
from client.exchange import Exchange
from client.settings import read_site
from privacy.errors import AuthenticityError, CloisterError, UnreachableError
from server import process
from server.coordinator import Coordinator
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.hub.sessions import Sessions
from server.roster_watch import NewRosters, RosterWatch
from server.service import agents
from server.settings import read_consortium
from strategies.key_turns import KeyTurns
from tests.cloister.commands.test_check import text_of
from tests.federations import await_condition, events_at
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.server.test_joining_processes import RUN, cloister, fill_in
from tests.studies import HOLD, MET
from transport.pki import Authority, certificate_pem, key_pem

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("agents"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian's package nginx-light)"),
]

SITES = ("north", "south", "east")
LONG = 90.0
WITHIN = 5.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "network.md"
MAIN = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def documented(folder: Path, port: int, behind: int, authority: Path) -> str:
    """The documentation's configuration, with the ports and files of this test."""
    block: str
    (block,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    changes = {
        "listen 443": f"listen {port}",
        "[::]:443": f"[::]:{port}",
        "127.0.0.1:9442": f"127.0.0.1:{behind}",
        "/etc/nginx/authority.pem": str(authority),
        "/etc/nginx/fed.example.org.pem": f"{folder}/front.pem",
        "/etc/nginx/fed.example.org.key": f"{folder}/front.key",
        "fed.example.org": "localhost",
    }
    if not has_ipv6():
        block = block.replace("    listen [::]:443 ssl http2;\n", "")
        del changes["[::]:443"]
    for before, after in changes.items():
        assert before in block, before
        block = block.replace(before, after)
    return block


@contextmanager
def nginx(folder: Path, port: int, behind: int, authority: Path) -> Iterator[Path]:
    """End TLS; give the certificate of the authority that issued nginx's own."""
    folder.mkdir()
    gateway, key = Authority.create("Hospital Web Gateway"), ec.generate_private_key(ec.SECP256R1())
    (folder / "front.pem").write_bytes(certificate_pem(gateway.issue_server("localhost", key.public_key())))
    (folder / "front.key").write_bytes(key_pem(key))
    (folder / "gateway.pem").write_bytes(certificate_pem(gateway.certificate))
    text = MAIN.format(folder=folder, server=documented(folder, port, behind, authority))
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    assert NGINX
    log = folder / "error.log"
    running = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(log)])
    try:
        await_condition((folder / "nginx.pid").exists)
        yield folder / "gateway.pem"
    finally:
        running.terminate()
        running.wait(LONG)


@dataclass
class Ended:
    """A consortium all of whose sites are behind nginx, and what came of its run."""

    folder: Path
    address: str
    behind: int  # the port of `[signature]`
    gateway: Path
    checked: dict[str, dict[str, str]] = field(default_factory=dict)
    lost: int = 0  # tokens that the server forgot while sites trained
    failures: list[Exception] = field(default_factory=list)


class Remembered(Sessions):
    """So that the test can have the server forget all tokens."""

    last: ClassVar["Remembered"]

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        Remembered.last = self


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """From nothing to a run, with commands in folders; the server is in this process, the agents are forked."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(agents, "Sessions", Remembered)
        port, behind = unused_port(), unused_port()
        ports = ("--port", str(unused_port()), "--joining-port", str(unused_port()))
        cloister("init", "lungs", "--host", "localhost", "--online", *ports)
        with Path("server/consortium.toml").open("a", encoding="utf-8") as settings:
            settings.write(f'\n[signature]\nlisten = "127.0.0.1:{behind}"\n')
        with nginx(folder / "nginx", port, behind, folder / "server" / "authority.pem") as gateway:
            made = Ended(folder, f"localhost:{port}", behind, gateway)
            join(made)
            run(made)
            yield made


def way(site: Path | str) -> dict[str, dict[str, str]]:
    """What `cloister check` finds on the way to the server."""
    found = takewhile(lambda finding: finding.check != "disk", check_site(Path(site)))
    return {finding.check: asdict(finding) for finding in found}


def join(ended: Ended) -> None:
    """All sites join through nginx."""
    done, listening = Event(), Event()
    server = Thread(target=process.serve, args=(Path("server"), lambda _: listening.set(), done))
    server.start()
    try:
        assert listening.wait(LONG)
        for site in SITES:
            cloister("invite", site)
            cloister("join", f"{site}.invitation", "--authentication", "signature", "--server", ended.address,
                     "--ca-bundle", ended.gateway)  # fmt: skip
            fill_in(site)
            path = Path(site, "site.toml")
            path.write_text(path.read_text(encoding="utf-8").replace(":Tiny", ":Held"), encoding="utf-8")
    finally:
        done.set()
        server.join(LONG)


def run(ended: Ended) -> None:
    """Two rounds; in the first, the server forgets all tokens while a site trains."""
    text = RUN.replace(":Tiny", ":Held").replace("rounds = 1", "rounds = 2").replace("seconds = 60", "seconds = 150")
    Path("run.toml").write_text(text, encoding="utf-8")
    cloister("sign", "run.toml")
    hold = Path("north", HOLD)
    hold.touch()

    def serve() -> None:
        try:
            process.serve_one(Path("server"), Path("run.manifest"), lambda _: None, Event())
        except CloisterError as error:
            ended.failures.append(error)

    server = Thread(target=serve)
    with ForkedAgents() as processes:
        server.start()
        for site in SITES:
            processes.start(site, Path(f"{site}.log"), "agent", site)
        await_condition(hold.with_suffix(MET).exists, LONG)
        ended.checked = way("south")
        ended.lost = len(Remembered.last._tokens)
        Remembered.last._tokens = {}
        hold.unlink()
        server.join(LONG)
        assert not server.is_alive()


def test_every_site_has_the_same_model(ended: Ended) -> None:
    assert not ended.failures
    models = {next((ended.folder / site / "models").rglob("*.safetensors")).read_bytes() for site in SITES}
    assert len(models) == 1


def test_tokens_that_were_lost_in_the_middle_of_a_round_cost_no_round(ended: Ended) -> None:
    assert ended.lost >= len(SITES)
    rounds = [event for event in events_at(ended.folder / "server") if event["event"] == "round"]
    assert [(event["released"], event["attempts"], sorted(event["sites"])) for event in rounds] == [
        (True, 1, sorted(SITES))
    ] * 2
    assert "does not know this site's token" in (ended.folder / "north.log").read_text(encoding="utf-8")


def test_a_check_names_who_ends_tls_and_that_both_signed(ended: Ended) -> None:
    text = text_of(ended.checked, "TLS", "ok")
    assert "TLS is ended on the way, with a certificate that “Hospital Web Gateway authority” issued" in text
    assert "server and site accept each other's signatures" in text_of(ended.checked, "signature", "ok")
    assert {ended.checked[name]["state"] for name in ("line", "clock")} == {"ok"}


def test_a_site_that_expects_tls_to_last_learns_which_files_must_allow_what(ended: Ended) -> None:
    path = ended.folder / "east" / "site.toml"
    kept = path.read_text(encoding="utf-8")
    try:
        path.write_text(kept.split("[network]")[0], encoding="utf-8")
        text = text_of(way(path), "TLS", "failed")
    finally:
        path.write_text(kept, encoding="utf-8")
    assert "issued by “Hospital Web Gateway authority”" in text
    assert 'if consortium.toml has [signature], set authentication = "signature" in [network] of site.toml' in text


def test_a_server_that_does_not_allow_it_is_named_as_what_to_change(ended: Ended) -> None:
    text = text_of(way(ended.folder / "east"), "signature", "failed")  # nothing is behind nginx any more
    assert "behind it nobody lets sites sign in" in text
    assert "[signature] in consortium.toml" in text
    invitation = Coordinator(ended.folder / "coordinator").invite("west")
    (ended.folder / "west.invitation").write_text(invitation.to_text(), encoding="utf-8")
    arguments = ["--authentication", "signature", "--server", ended.address, "--ca-bundle", str(ended.gateway)]
    with pytest.raises(UnreachableError, match=r"nobody lets sites join .* have the server run with \[signature\]"):
        cloister("join", "west.invitation", *arguments)
    assert not Path("west").exists()


def test_a_certificate_that_the_bundle_does_not_cover_is_named(ended: Ended) -> None:
    bundle = ended.folder / "east" / "keys" / "ca-bundle.pem"
    kept = bundle.read_bytes()
    try:
        bundle.write_bytes((ended.folder / "server" / "authority.pem").read_bytes())
        text = text_of(way(ended.folder / "east"), "TLS", "failed")
    finally:
        bundle.write_bytes(kept)
    assert "let ca_bundle in [network] of site.toml name a PEM file" in text
    assert "issued by “Hospital Web Gateway authority”" in text


def test_a_revoked_site_is_cut_within_seconds_behind_nginx_too(ended: Ended) -> None:
    place = read_consortium(ended.folder / "server")
    roster, roster_file = place.signed_roster()
    mailboxes = Mailboxes({member.node_id for member in roster.members})
    hub = Hub(roster, mailboxes, 1 << 20, roster_file, sessions=Sessions(place.tls, roster))
    watch = RosterWatch(place, NewRosters(hub, roster, KeyTurns()).take, roster.version)
    ends = list[tuple[float, Exception]]()

    def wait() -> None:
        site = read_site(ended.folder / "south")
        with Exchange(ended.address, site.tls, None, site.signer) as exchange:
            for _ in range(2):
                try:
                    exchange.pull(60.0)
                except (UnreachableError, AuthenticityError) as error:
                    ends.append((time.monotonic(), error))

    try:
        hub.start("localhost:0", place.tls, f"127.0.0.1:{ended.behind}")
        watch.start()
        waiting = Thread(target=wait)
        waiting.start()
        await_condition(lambda: roster.member("south").node_id in mailboxes.online(0.0), LONG)
        start = time.monotonic()
        cloister("revoke", "south", "--folder", ended.folder)
        waiting.join(LONG)
        assert ends[0][0] - start < WITHIN
        assert f"roster {roster.version + 1} lists no site south" in str(ends[1][1])
    finally:
        watch.stop()
        hub.stop(grace=0)
