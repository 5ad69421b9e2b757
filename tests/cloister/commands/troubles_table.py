"""The table of what can go wrong at a site, and what is said about it; docs/troubleshooting.md shows the same."""

from collections.abc import Callable
from dataclasses import dataclass
from ssl import TLSVersion

from tests.cloister.commands import network_troubles as network
from tests.cloister.commands import site_troubles as site
from tests.cloister.commands.consortium_at_work import Case

ALL, MEMBERS, JOINING = ("check", "join", "agent"), ("check", "agent"), ("join",)
STOPPED = 130  # after Ctrl-C


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong, as a user would put it, and how it is recognised."""

    name: str
    make: Callable[[Case], object]
    said: str  # the cause, as commands name it
    remedy: str  # what they say to do
    commands: tuple[str, ...] = ALL  # in which it can show
    passes: bool = False  # an agent says it, and goes on: it may pass, or harms nobody yet
    joining: str = ""  # the cause, as `join` names it, if in other words
    warns: bool = False  # `check` only warns

    def phrase(self, command: str) -> str:
        return self.joining if command == "join" and self.joining else self.said

    def exit_status(self, command: str) -> int:
        if command == "agent" and self.passes:
            return STOPPED
        return 0 if command == "check" and self.warns else 1


ANOTHER_SERVICE = "another service is behind this address"
ASK = "check address and port with the coordinator"

SECTIONS = {
    "The server's name and address": [
        Trouble("the server's name does not resolve", network.unknown_name,
                "the name cannot be resolved here", "ask your network team for its address", passes=True),
        Trouble("no name server answers", network.silent_name_server,
                "no name server answers", "ask your network team for its address", passes=True),
        Trouble("one of two addresses is dead", network.one_dead_address,
                "but not to all (127.0.0.2", "have the dead address removed from the name", ("check",), warns=True),
        Trouble("the server has an IPv6 address only, and the site no IPv6", network.no_ipv6,
                "this machine has no route to it", "ask your network team for one", passes=True),
        Trouble("nothing listens at the port", network.closed_port,
                "connection refused", "have the coordinator start the server", passes=True),
        Trouble("a firewall drops the packets", network.filtered_port,
                "no answer, as behind a firewall", "have your network team allow this connection", passes=True),
        Trouble("the port is the one for joining", network.agents_dial_the_joining_port,
                "is not the port for agents", ASK, passes=True,
                joining="does not greet as a joining port does"),
        Trouble("large packets are dropped on the way", network.large_packets_dropped,
                "kB do not within 4 s", "ask your network team whether large packets are dropped", ("check",)),
    ],
    "What answers there": [
        Trouble("an SSH server answers", network.answered_by(network.ssh), ANOTHER_SERVICE, ASK, passes=True),
        Trouble("a web server answers", network.web_server, ANOTHER_SERVICE, ASK, passes=True),
        Trouble("a service takes the connection and says nothing", network.answered_by(network.says_nothing),
                "then says nothing", ASK, passes=True),
        Trouble("a load balancer without a server behind it", network.answered_by(network.closes),
                "closes it before TLS begins", ASK, passes=True),
        Trouble("a web server answers with TLS", network.web_server_with_tls,
                "issued by “Example Web Trust authority”", ASK),
        Trouble("another consortium's server answers", network.another_consortium,
                "that both belong to the same consortium", ASK,
                joining="belongs to another consortium than this invitation"),
        Trouble("the server's certificate has another name", network.another_name,
                "presents a certificate for another name", "use the name in the certificate"),
        Trouble("the server's certificate has expired", network.certified(days=-1),
                "presents a certificate that is not valid now", "ask the coordinator for a new one", passes=True),
        Trouble("the site's clock is behind a new certificate", network.certified(days=80, begins=0.01),
                "presents a certificate that is not valid now", "set this machine's clock", passes=True),
        Trouble("the site's clock is 10 minutes behind", network.clock_off(10),
                "clock is 600 s behind the server's", "set both by the same time server", MEMBERS, passes=True),
        Trouble("the site's clock is 10 minutes ahead", network.clock_off(-10),
                "clock is 600 s ahead of the server's", "set both by the same time server", MEMBERS, passes=True),
        Trouble("the server has a newer version", network.newer_server,
                "under protocol 2", "install the server's version",
                joining="another version of Cloister answers there"),
    ],
    "Proxies": [
        Trouble("the proxy asks for a password", network.proxy_that(login=("north", "hunter2")),
                "asks for a user and a password (407)",
                "set CLOISTER_PROXY_USER and CLOISTER_PROXY_PASSWORD", passes=True),
        Trouble("the proxy refuses the password", network.wrong_password,
                "does not accept this user and password (407)",
                "set CLOISTER_PROXY_USER and CLOISTER_PROXY_PASSWORD", passes=True),
        Trouble("the proxy forbids the server", network.proxy_that("403 Forbidden"),
                "does not let this site reach", "have your network team allow CONNECT", passes=True),
        Trouble("the proxy cannot reach the server", network.proxy_that("502 Bad Gateway"),
                "(502 “Bad Gateway”)", "check the address, and that the server runs", passes=True),
        Trouble("there is no proxy", network.proxy_is_away,
                "cannot reach the proxy", "check its name and port", passes=True),
        Trouble("the proxy closes the connection", network.proxy_answers(network.closes),
                "does not answer as an HTTP proxy", "check its address and port", passes=True),
        Trouble("the proxy says nothing", network.proxy_answers(network.says_nothing),
                "no answer", "check its name and port", passes=True),
        Trouble("a proxy inspects TLS", network.inspecting_proxy(TLSVersion.TLSv1_3),
                "issued by “Hospital Web Gateway authority”", "have your network team exempt the server"),
        Trouble("a proxy inspects TLS, and speaks an old version", network.inspecting_proxy(TLSVersion.TLSv1_2),
                "issued by “Hospital Web Gateway authority”", "have your network team exempt the server", passes=True),
    ],
    "Invitations and membership": [
        Trouble("a part of the token is missing", network.damaged_token,
                "the invitation is damaged", "copy it again", JOINING),
        Trouble("the token is of another version", network.token_of_another_version,
                "of another version of Cloister", "use the coordinator's version", JOINING),
        Trouble("the token has expired", network.expired_token,
                "has expired", "ask the coordinator for a new one", JOINING),
        Trouble("the token was used by others", network.used_token,
                "was used before, by other keys", "tell the coordinator at once", JOINING),
        Trouble("the token was withdrawn", network.withdrawn_token,
                "does not know this invitation",
                "ask the coordinator for a new one, or to copy invitations/ to the server", JOINING),
        Trouble("the token is of another consortium", network.token_of_another_consortium,
                "belongs to another consortium than this invitation", ASK, JOINING),
        Trouble("the site was revoked", network.revoked,
                "is not a member of the roster", "ask the coordinator to add this site", MEMBERS),
    ],
    "The site's own folder": [
        Trouble("the site's certificate has expired", site.certificate_expired,
                "this site's certificate expired on",
                "have the coordinator approve this site's request again", MEMBERS),
        Trouble("the site's roster has expired", site.roster_expired,
                "has expired", "ask the coordinator for a newer one", MEMBERS),
        Trouble("an old roster was put back at the server", site.newer_than_the_servers,
                "is older than the one here", "ask the coordinator for the latest", MEMBERS, passes=True),
        Trouble("a key is missing", site.without("signing.key"),
                "signing.key: no such file", "restore this key from its owner's backup", MEMBERS),
        Trouble("the certificate is missing", site.without("tls.pem"),
                "tls.pem: no such file", "restore this certificate", MEMBERS),
        Trouble("a key is another site's", site.of_another_site("sealing.key"),
                "lists other keys for north", "restore them from the site's backup", MEMBERS),
        Trouble("a key is cut", site.cut("tls.key"),
                "tls.key: not a readable private key", "restore it from its owner's backup", MEMBERS),
        Trouble("others may read a key", site.readable_by_others,
                "other users of this machine may read it", "chmod 600", MEMBERS, passes=True),
        Trouble("site.toml is in Latin-1", site.latin_1, "not UTF-8 text", "save the file as UTF-8", MEMBERS),
        Trouble("site.toml is in UTF-16", site.utf_16, "not UTF-8 text", "save the file as UTF-8", MEMBERS),
        Trouble("site.toml has a misspelt key", site.misspelt, "unknown key", "did you mean `held_out`?", MEMBERS),
        Trouble("the records are missing", site.no_records,
                "absent.csv: No such file", "name a CSV file that this account can read", MEMBERS),
        Trouble("a task is not installed", site.no_task,
                "there is no module 'nobody'", "install its package, or put its file beside site.toml", MEMBERS),
        Trouble("the disk is full", site.full_disk, "no space left on device", "make room on this disk"),
        Trouble("the disk is read-only", site.read_only_disk,
                "read-only file system", "choose another place, or make this disk writable"),
    ],
}  # fmt: skip

TROUBLES = [trouble for troubles in SECTIONS.values() for trouble in troubles]
