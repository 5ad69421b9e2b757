"""The server's half of the key ceremony: it asks one site to lead, and relays letters that it cannot open.

    1. ask     every site says which keys it has (`Membership`)
    2. relay   a site that missed an epoch gets its letters
    3. lead    if sites still hold different keys, or none, one of them makes a new epoch; if it fails, the next one
    4. accept  every site opens its letter and says which keys it now has
    5. hear    a site that is online without these keys leads in turn, once per run: nobody can tell whether its letter
               was false or its complaint is. As each leads at most once, no liar keeps an honest site out

A new epoch is made on command, and for every new roster, because sites have no keys for it yet. If all sites have the
same keys, all this is skipped. Otherwise no other run is in a round meanwhile: `strategies.key_turns`.
"""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import Message

from privacy.errors import CloisterError, ProtocolError, RunError
from privacy.run.plan import LARGEST_STEP
from strategies.open_round import begin_round
from transport.messages import ACCEPT, LEAD, PAIRS, Keys, Letter, Pairs
from transport.run_messages import content_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flwr.serverapp import Grid

    from strategies.event_log import EventLog
    from strategies.key_turns import KeyTurn
    from strategies.membership import Membership
    from strategies.sealed_keys import SealedKeys
    from transport.messages import MessageKind

Q = TypeVar("Q")
_TRIES = 2  # at delivering mask secrets; the second includes letters that were lost before
_LISTED = 5  # failures that a message lists

Held = tuple[int, str, list[str]]  # epoch and fingerprint of keys, and the sites that have them


def next_epoch(seen: Collection[int], own: int) -> int:
    """Return the number of the next key epoch: above those seen, yet acceptable to sites.

    A site accepts no epoch more than `LARGEST_STEP` above its own. So epochs further than half of that from the median
    are ignored: a member that claims one is left behind, and reports it. As long as most sites are honest and
    their epochs are closer together than that, all of these accept this number.

    Args:
        seen: the newest epoch that each site claims to have seen.
        own: the newest epoch that the server has letters for, or has asked for.
    """
    middle = median_low(seen)
    return 1 + max(epoch for epoch in (own, *seen) if abs(epoch - middle) <= LARGEST_STEP // 2)


class Ceremony:
    """Brings all sites of a round to the same keys."""

    def __init__(
        self, members: Membership, letters: SealedKeys, event_log: EventLog, turn: KeyTurn, *, new_epoch: bool,
        masked: bool,
    ) -> None:  # fmt: skip
        self._members, self._letters, self._event_log, self._turn = members, letters, event_log, turn
        self._masked = masked
        self._wanted = new_epoch
        self._last_epoch = 0
        self._failures: dict[str, int] = {}  # sites that failed to lead are asked last
        self._heard = set[str]()  # sites that had no keys and have led since
        self._parted: dict[str, int] = {}  # how often a site was left out because a shared secret was missing

    def agree(self, grid: Grid, sites: list[str], minimum: int) -> Held:
        """Bring these sites to the same keys, which no other run changes until this one's turn ends; begin its round.

        Returns:
            Epoch, fingerprint, and the sites that have them, which are this run's alone now; no sites if fewer than the
            minimum are there.

        Raises:
            RunError: if no site could make keys that enough others accepted.
        """
        while len(sites) >= minimum:
            if self._settled(sites):
                held = self._largest(sites)
            else:
                with self._turn.alone() as known:
                    held = self._bring(grid, sites, minimum) if known else (0, "", [])
            if held[2] and self._turn.begin():
                epoch, keys, holders = held
                return epoch, keys, begin_round(self._members, grid, holders, minimum)
            sites = self._ask_again(grid, sites, minimum)  # another run has had keys made since
        return 0, "", []

    def relay(self, grid: Grid, sites: list[str]) -> None:
        """Have sites that were away when keys were made open their letters; without, they could open no sum."""
        late = [site for site in sites if self._members.latest.get(site, 0) < self._letters.latest]
        if late:
            with self._turn.alone():
                self._relay(grid, late)

    def _settled(self, sites: Sequence[str]) -> bool:
        """Whether nothing is to be done: all of these sites have the same keys and, if masked, share secrets."""
        if self._wanted or set(self._largest(sites)[2]) != set(sites):
            return False
        return not self._masked or all({*sites} - {site} <= self._members.pairs[site] for site in sites)

    def _ask_again(self, grid: Grid, sites: list[str], minimum: int) -> list[str]:
        """Ask sites once more which keys they have; return those that answer, once they have time for this run."""
        self._turn.asks_anew()
        self._members.attention.forget_queries()
        for site in sites:
            self._members.doubt(site)
        here = self._members.gather(grid, minimum, self._members.attention.seconds)
        return [site for site in sites if site in here]

    def _bring(self, grid: Grid, sites: list[str], minimum: int) -> Held:
        held = 0, "", list[str]()
        if not self._wanted:
            self._relay(grid, sites)
            held = self._paired(grid, *self._largest(sites))
        if len(held[2]) < minimum:
            held = self._renew(grid, sites, minimum)
        while left := [site for site in sites if self._members.keys.get(site) != held[:2] and site not in self._heard]:
            self._heard.add(left[0])
            try:
                held = self._led(grid, left[0], sites, minimum)
            except CloisterError as error:
                self._members.problems[left[0]] = str(error)
                held = self._paired(grid, *self._largest(sites))
        return held if len(held[2]) >= minimum else self._renew(grid, sites, minimum)

    def _renew(self, grid: Grid, sites: list[str], minimum: int) -> Held:
        """Have one site after another lead, until enough sites have its keys.

        Raises:
            RunError: if no site could make keys that enough others accepted.
        """
        failures = []
        for leader in sorted(sites, key=lambda site: self._failures.get(site, 0)):
            self._failures[leader] = self._failures.get(leader, 0) + 1  # unless it succeeds
            try:
                held = self._led(grid, leader, sites, minimum)
            except CloisterError as error:
                failures.append(f"{leader}: {error}")
                continue
            self._wanted, self._failures[leader] = False, 0
            return held
        msg = f"the sites could not agree on keys: {'; '.join(failures[:_LISTED])}"
        raise RunError(msg)

    def _led(self, grid: Grid, leader: str, sites: list[str], minimum: int) -> Held:
        """Have a site lead a new epoch, and the others accept its keys.

        Raises:
            CloisterError: if it does not lead, or too few accept its keys.
        """
        self._lead(grid, leader)
        self._relay(grid, [site for site in sites if site != leader])
        held = self._paired(grid, *self._largest(sites))
        if leader not in held[2] or len(held[2]) < minimum:
            msg = "too few sites accepted the keys that it made"
            raise ProtocolError(msg)
        self._event_log.record("epoch", epoch=held[0], keys=held[1], leader=leader, sites=held[2])
        return held

    def _largest(self, sites: Sequence[str]) -> Held:
        """Return the keys that most of these sites have (the newest, if tied), and the sites that have them."""
        held: dict[tuple[int, str], list[str]] = {}
        for site in sites:
            epoch, fingerprint = self._members.keys.get(site, (0, ""))
            if epoch:
                held.setdefault((epoch, fingerprint), []).append(site)
        if not held:
            return 0, "", []
        (epoch, fingerprint), holders = max(held.items(), key=lambda group: (len(group[1]), group[0]))
        return epoch, fingerprint, holders

    def _lead(self, grid: Grid, leader: str) -> None:
        # Above every credible epoch, for this roster or another: epochs never go back. A number is never reused
        # either: a leader whose answer was lost holds its own keys under that number.
        seen = self._members.latest.values()
        self._last_epoch = epoch = next_epoch(seen, max(self._letters.latest, self._last_epoch))
        message = self._message(leader, LEAD, epoch)
        half = self._members.attention.seconds / 2  # leaves time for another leader
        replies = [reply for _, reply in self._members.attention.ask(grid, [message], lambda: False, half)]
        if not replies:
            msg = "it did not answer when asked to lead"
            raise ProtocolError(msg)
        keys = LEAD.read_reply(content_of(replies[0]))
        if keys.epoch != epoch or set(keys.letters) != {member.site for member in self._members.roster.members}:
            msg = "it made keys of another key epoch, or not for all members of the roster"
            raise ProtocolError(msg)
        self._letters.keep(keys.epoch, self._members.roster.version, leader, keys.letters)
        self._note(leader, keys)

    def _relay(self, grid: Grid, sites: list[str]) -> None:
        members = self._members
        missing = {
            site: self._letters.after(members.latest.get(site, 0), members.roster.version, site) for site in sites
        }
        names = members.names()
        for number in range(max(map(len, missing.values()), default=0)):  # oldest first, all sites at once
            letters = {site: sealed[number] for site, sealed in missing.items() if len(sealed) > number}
            messages = [self._message(site, ACCEPT, Letter(*letter)) for site, letter in letters.items()]
            for node, reply in members.attention.ask(grid, messages):
                try:
                    self._note(names[node], ACCEPT.read_reply(content_of(reply)))
                except CloisterError as error:  # affects this site only: the others go on
                    members.problems[names[node]] = str(error)

    def _note(self, site: str, keys: Keys) -> None:
        """Note the keys that a site has accepted, and its new mask secrets."""
        self._members.keys[site] = keys.epoch, keys.fingerprint
        self._members.latest[site] = max(keys.epoch, self._members.latest.get(site, 0))
        self._members.pairs[site] = set(keys.pairs)
        self._letters.keep_pairs(keys.fingerprint, site, keys.pairs)

    def _paired(self, grid: Grid, epoch: int, keys: str, sites: list[str]) -> Held:
        """Deliver shared mask secrets to sites with the same keys; leave out sites that end up without."""
        members = self._members
        if not self._masked:
            return epoch, keys, sites
        for _ in range(_TRIES):
            missing = {site: [name for name in sites if name < site and name not in members.pairs[site]]
                       for site in sites}  # fmt: skip
            letters = {site: self._letters.pairs_to(keys, site, senders) for site, senders in missing.items()}
            # If letters are lost here, ask their senders for new ones.
            lost = {sender for site, senders in missing.items() for sender in set(senders) - set(letters[site])}
            receivers = [site for site in sites if letters[site] or site in lost]
            if not receivers:
                break
            self._share(grid, keys, {site: letters[site] for site in receivers})
        return epoch, keys, self._connected(sites)

    def _share(self, grid: Grid, keys: str, letters: Mapping[str, Mapping[str, bytes]]) -> None:
        members, names = self._members, self._members.names()
        messages = [self._message(site, PAIRS, Pairs(keys, letter)) for site, letter in letters.items()]
        for node, reply in members.attention.ask(grid, messages):
            try:
                shared = PAIRS.read_reply(content_of(reply))
                members.pairs[names[node]] = set(shared.names)
                self._letters.keep_pairs(keys, names[node], shared.letters)
            except CloisterError as error:
                members.problems[names[node]] = str(error)

    def _connected(self, sites: list[str]) -> list[str]:
        """Return sites that all share a secret with each other.

        If two sites share none, nobody can tell which of them is at fault: they are left out in turn.
        """
        pairs, left = self._members.pairs, list(sites)
        while True:
            lacks = {site: [name for name in left if name != site and not (name in pairs[site] and site in pairs[name])]
                     for site in left}  # fmt: skip
            worst = max(lacks, key=lambda site: (len(lacks[site]), -self._parted.get(site, 0), site), default="")
            if not lacks.get(worst):
                return left
            self._parted[worst] = self._parted.get(worst, 0) + 1
            self._members.problems[worst] = f"it shares no secret for masks with {', '.join(lacks[worst])}"
            left.remove(worst)

    def _message(self, site: str, kind: MessageKind[Q, Any], content: Q) -> Message:
        seconds = self._members.attention.seconds
        return Message(kind.pack(content), self._members.nodes[site], kind.name, ttl=seconds, group_id="keys")
