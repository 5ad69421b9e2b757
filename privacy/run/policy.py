"""Define a site's policy, `[policy]` in its `site.toml`, and check runs against it.

A run may not exceed the policy. Every refusal names the limit that the run exceeds, so that the coordinator can change
the run to what the site allows.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from privacy import clock
from privacy.accounting.accounting import epsilon as epsilon_of
from privacy.codec.packing import Profile
from privacy.config import STRICT, Hex32
from privacy.errors import PolicyError
from privacy.run.hours import HOURS, Hours
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from datetime import datetime

    from privacy.run.manifest import Manifest
    from privacy.run.people import Person
    from privacy.run.roster import Roster
    from privacy.run.settings import RunSettings
    from privacy.run.tables import Vote


METRIC_NAME = r"[A-Za-z0-9][A-Za-z0-9 _.@%+-]{0,39}"
MOST_METRICS = 16  # entries in `disclose`


@dataclass(frozen=True, config=STRICT)
class Policy:
    """`[policy]`: limits on the runs that the site joins, and what may leave it besides encrypted updates."""

    tasks: tuple[str, ...]  # module:Class, from packages that this site installed
    maximum_epsilon: Annotated[float, Field(gt=0)]  # of one run by itself
    # For some of the tasks, the digest of their installed package: see `client.task.installed`.
    task_digests: dict[str, Hex32] = field(default_factory=dict)
    hours: Annotated[str, Field(pattern=HOURS)] | None = None  # when it trains, in local time: "20:00-06:00"
    approval: bool = False  # only runs that the site approved: `cloister approve`
    # Whose runs it joins, by names or roles, of those whom the roster allows to sign; if not given, all of them.
    signers: tuple[SiteName, ...] | None = None
    recipients: tuple[SiteName, ...] = ()  # who may have the model beside the run's sites: names or roles of people
    minimum_noise_multiplier: Annotated[float, Field(ge=0)] = 0.5
    minimum_cohort: Annotated[int, Field(ge=2)] = 3
    strategies: tuple[str, ...] | None = (
        None  # federated algorithms, by name or module:Class; if not given, those that ship with Cloister
    )
    encryption: tuple[Profile, ...] = ("compact", "precise", "dense")  # encryption itself is not optional
    collusion_resistant: bool = True  # only runs with masks
    bounded_updates: bool = False  # only runs in which every site proves that its update is within an update_norm
    shared_noise: bool = False  # also runs in which only the sum has all of the noise: `privacy.noise.noise_shares`
    colluding_sites: Annotated[int, Field(ge=0)] = 1  # runs with masks must tolerate at least this many
    vote_epsilon: Annotated[float, Field(ge=0)] = (
        0.0  # the most ε that one vote may cost held-out records; 0 refuses runs with votes
    )
    # What else may leave: "epsilon" and, without noise, metrics by name, such as "loss".
    disclose: Annotated[
        tuple[Annotated[str, Field(pattern=f"^{METRIC_NAME}$")], ...], Field(max_length=MOST_METRICS)
    ] = ("epsilon",)

    def __post_init__(self) -> None:
        """Check the hours, and that digests are of tasks in the list.

        Raises:
            ValueError: if they are not.
        """
        if self.hours is not None:
            Hours.read(self.hours)
        for task in self.task_digests:
            if task not in self.tasks:
                msg = f"task_digests names {task}, which is not in tasks; add it there, or remove its digest"
                raise ValueError(msg)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that leave the site, without noise and not included in any ε."""
        return tuple(name for name in self.disclose if name != "epsilon")


def check_policy(policy: Policy, manifest: Manifest, epsilon: float, site: str) -> None:
    """Check a run against the site's policy; `epsilon` is the cost of the whole run by itself.

    Raises:
        PolicyError: naming the first limit that the run exceeds.
    """
    settings = manifest.settings
    if settings.task not in policy.tasks:
        raise _refusal(site, f"the task {settings.task}", f"tasks = {_listed(policy.tasks)}")
    if site not in settings.cohort.sizes:
        raise _refusal(site, "a run that does not name this site", "[cohort.sizes] of the run")
    if settings.cohort.minimum < policy.minimum_cohort:
        wish = f"a minimum cohort of {settings.cohort.minimum}"
        raise _refusal(site, wish, f"minimum_cohort = {policy.minimum_cohort}")
    if manifest.noise_multiplier < policy.minimum_noise_multiplier:
        wish = f"a noise multiplier of {manifest.noise_multiplier:g}"
        limit = f"minimum_noise_multiplier = {policy.minimum_noise_multiplier:g}"
        raise _refusal(site, wish, limit)
    if not epsilon <= policy.maximum_epsilon:  # so that NaN is a refusal
        wish = f"a run of ε {epsilon:.2f}"
        raise _refusal(site, wish, f"maximum_epsilon = {policy.maximum_epsilon:g}")
    if settings.profile not in policy.encryption:
        wish = f"the profile {settings.profile}"
        raise _refusal(site, wish, f"encryption = {_listed(policy.encryption)}")
    _check_protection(policy, settings, site)
    if settings.vote:
        _check_vote(policy, manifest, settings.vote, site)


def _check_protection(policy: Policy, settings: RunSettings, site: str) -> None:
    """Check masks, the norm of updates and noise against the policy."""
    if policy.collusion_resistant and not settings.encryption.collusion_resistant:
        raise _refusal(site, "a run without masks", "collusion_resistant = true")
    if policy.bounded_updates and settings.encryption.update_norm is None:
        raise _refusal(site, "a run without update_norm", "bounded_updates = true")
    if settings.shares_noise and not policy.shared_noise:
        raise _refusal(site, "shared noise", "shared_noise = false")
    masked = policy.collusion_resistant or settings.shares_noise
    if masked and settings.colluding_sites < policy.colluding_sites:
        wish = f"a run that tolerates {settings.colluding_sites} colluding sites"
        raise _refusal(site, wish, f"colluding_sites = {policy.colluding_sites}")


def _check_vote(policy: Policy, manifest: Manifest, vote: Vote, site: str) -> None:
    if not vote.epsilon <= policy.vote_epsilon:
        raise _refusal(site, f"votes of ε {vote.epsilon:g}", f"vote_epsilon = {policy.vote_epsilon:g}")
    together = epsilon_of([manifest.votes_cost], manifest.settings.privacy.delta)
    if not together <= policy.maximum_epsilon:
        wish = f"a run whose votes together cost ε {together:.2f}"
        raise _refusal(site, wish, f"maximum_epsilon = {policy.maximum_epsilon:g}")


def check_signer(policy: Policy, signer: Person, site: str) -> None:
    """Check that a site joins the runs of whoever signed one.

    Raises:
        PolicyError: if it does not.
    """
    if policy.signers is not None and not signer.is_in(policy.signers):
        wish = f"a run that {signer.name} ({signer.role}) signed"
        raise _refusal(site, wish, f"signers = {_listed(policy.signers)}")


def check_recipients(policy: Policy, settings: RunSettings, roster: Roster, site: str) -> None:
    """Check that nobody beside the sites gets a run's model whom the site does not allow to have it.

    A role in the policy covers the people who have it; a name covers one person, not that person's role.

    Raises:
        PolicyError: naming the first who may not have it.
    """
    for name in settings.recipients:
        person = roster.person(name)
        if name not in policy.recipients and not (person and person.is_in(policy.recipients)):
            wish = f"a run whose model {name} may have"
            raise _refusal(site, wish, f"recipients = {_listed(policy.recipients)}")


def check_hours(policy: Policy, site: str, now: datetime | None = None) -> None:
    """Check that the site trains at this time of day.

    Args:
        policy: the site's.
        site: its name.
        now: in local time; the present if not given.

    Raises:
        PolicyError: saying when it trains next.
    """
    if policy.hours is None:
        return
    hours, now = Hours.read(policy.hours), now or clock.now().astimezone()
    if not hours.include(now):
        text = (
            f'{site} does not train now: its policy says hours = "{policy.hours}" in its local time; it takes part '
            f"again from {hours.next_start(now):%Y-%m-%d %H:%M UTC%z}"
        )
        raise PolicyError(text, rule="hours")


def _refusal(site: str, wish: str, limit: str) -> PolicyError:
    text = f"{site} does not allow {wish}: its policy says {limit}; change the run, or let the site change its policy"
    return PolicyError(text, rule="cohort" if limit.startswith("[cohort") else limit.partition(" ")[0])


def _listed(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
