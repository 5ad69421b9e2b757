"""A site's policy wins over what a run asks for, and every refusal names the limit that it met."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from privacy.errors import PolicyError, RefusedError
from privacy.run.policy import Policy, check_policy, check_recipients, check_signer
from privacy.run.settings import Encryption, Privacy
from tests.privacy.consortium import PEOPLE, make_manifest, make_roster, run_settings

TASK = "tasks.tumours:Tumours"


def check(policy: Policy, *, sigma: float = 1.0, minimum: int = 3, epsilon: float = 2.0, site: str = "north") -> None:
    privacy = Privacy(max_grad_norm=1.0, noise_multiplier=sigma)
    manifest, _ = make_manifest(run_settings(minimum=minimum, privacy=privacy))
    check_policy(policy, manifest, epsilon, site)


def policy(
    tasks: tuple[str, ...] = (TASK,),
    maximum_epsilon: float = 3.0,
    minimum_noise_multiplier: float = 0.5,
    minimum_cohort: int = 3,
) -> Policy:
    return Policy(
        tasks=tasks,
        maximum_epsilon=maximum_epsilon,
        minimum_noise_multiplier=minimum_noise_multiplier,
        minimum_cohort=minimum_cohort,
        collusion_resistant=False,
    )


def test_a_run_within_all_limits_is_allowed_up_to_each_of_them() -> None:
    check(policy())
    check(policy(maximum_epsilon=2.0), epsilon=2.0)
    check(policy(minimum_noise_multiplier=1.0), sigma=1.0)
    check(policy(minimum_cohort=2), minimum=2)


@pytest.mark.parametrize(
    ("limits", "changes", "message"),
    [
        pytest.param(policy(tasks=()), {}, f"the task {TASK}: its policy says tasks = []", id="no task"),
        pytest.param(
            policy(tasks=("a:B", "tasks.tumours:Other")),
            {},
            f'the task {TASK}: its policy says tasks = ["a:B", "tasks.tumours:Other"]',
            id="another task",
        ),
        pytest.param(
            policy(),
            {"site": "east"},
            "a run that does not name this site: its policy says [cohort.sizes] of the run",
            id="another site",
        ),
        pytest.param(
            policy(), {"minimum": 2}, "a minimum cohort of 2: its policy says minimum_cohort = 3", id="a small cohort"
        ),
        pytest.param(
            replace(policy(), bounded_updates=True),
            {},
            "a run without update_norm: its policy says bounded_updates = true",
            id="updates of any length",
        ),
        pytest.param(
            policy(),
            {"sigma": 0.49},
            "a noise multiplier of 0.49: its policy says minimum_noise_multiplier = 0.5",
            id="little noise",
        ),
        pytest.param(
            policy(),
            {"sigma": 0.0, "epsilon": math.inf},
            "a noise multiplier of 0: its policy says minimum_noise_multiplier = 0.5",
            id="no noise",
        ),
        pytest.param(
            policy(), {"epsilon": 3.01}, "a run of ε 3.01: its policy says maximum_epsilon = 3", id="a high cost"
        ),
        pytest.param(
            policy(minimum_noise_multiplier=0.0),
            {"sigma": 0.0, "epsilon": math.inf},
            "a run of ε inf: its policy says maximum_epsilon = 3",
            id="an infinite cost",
        ),
        pytest.param(
            Policy(tasks=(TASK,), maximum_epsilon=3.0, encryption=("precise",)),
            {},
            'the profile compact: its policy says encryption = ["precise"]',
            id="another profile",
        ),
        pytest.param(
            Policy(tasks=(TASK,), maximum_epsilon=3.0, encryption=()),
            {},
            "the profile compact: its policy says encryption = []",
            id="no profile",
        ),
    ],
)
def test_a_refusal_names_what_was_asked_and_the_limit(limits: Policy, changes: dict[str, float], message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check(limits, **changes)  # type: ignore[arg-type]
    site = changes.get("site", "north")
    text, _, rule = str(caught.value).partition(" (policy: ")
    assert text == f"{site} does not allow {message}; change the run, or let the site change its policy"
    assert rule.rstrip(")") in {"cohort", message.partition("its policy says ")[2].split(" = ")[0]}


def test_an_epsilon_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(RefusedError, match="a run of ε nan"):
        check(policy(), epsilon=math.nan)


def test_a_site_shares_noise_only_if_its_policy_allows_it() -> None:
    settings = replace(
        run_settings(steps=1),
        privacy=Privacy(max_grad_norm=1.0, noise_multiplier=4.0, noise="shared"),
        encryption=Encryption(update_bound=1.0, profile="precise", collusion_resistant=True),
    )
    manifest = make_manifest(settings)[0]
    with pytest.raises(RefusedError, match="does not allow shared noise: its policy says shared_noise = false"):
        check_policy(policy(), manifest, 2.0, "north")
    check_policy(replace(policy(), shared_noise=True), manifest, 2.0, "north")
    with pytest.raises(RefusedError, match=r"minimum_noise_multiplier = 4\.1"):
        check_policy(replace(policy(minimum_noise_multiplier=4.1), shared_noise=True), manifest, 2.0, "north")
    trusting = replace(settings, privacy=replace(settings.privacy, colluding_sites=0))
    with pytest.raises(
        RefusedError, match="a run that tolerates 0 colluding sites: its policy says colluding_sites = 1"
    ):
        check_policy(replace(policy(), shared_noise=True), make_manifest(trusting)[0], 2.0, "north")


def test_the_default_policy_is_safe() -> None:
    defaults = Policy(tasks=(), maximum_epsilon=1.0)
    assert not defaults.shared_noise
    assert (defaults.minimum_noise_multiplier, defaults.minimum_cohort, defaults.disclose) == (0.5, 3, ("epsilon",))


@pytest.mark.parametrize(
    "changes",
    [
        '"maximum_epsilon": 0',
        '"maximum_epsilon": NaN',
        '"maximum_epsilon": 1, "minimum_noise_multiplier": -1',
        '"maximum_epsilon": 1, "minimum_noise_multiplier": NaN',
        '"maximum_epsilon": 1, "minimum_cohort": 1',
        '"maximum_epsilon": 1, "encryption": ["none"]',
        '"maximum_epsilon": 1, "disclose": "loss"',
        '"maximum_epsilon": 1, "disclose": [""]',
        '"maximum_epsilon": 1, "disclose": ["a\\u001b[2J"]',
        '"maximum_epsilon": 1, "disclose": ["%s"]' % ("a" * 41),
        '"maximum_epsilon": 1, "disclose": [%s]' % ", ".join(f'"m{i}"' for i in range(17)),  # noqa: UP031
    ],
)
def test_a_policy_out_of_range_is_refused(changes: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Policy).validate_json('{"tasks": [], %s}' % changes)  # noqa: UP031


ANA, INES, RUI = PEOPLE  # coordinator, researcher, auditor


@pytest.mark.parametrize(
    ("signers", "allowed"),
    [
        (None, {"ana", "ines"}),
        (("coordinator",), {"ana"}),
        (("ines",), {"ines"}),
        (("researcher", "ana"), {"ana", "ines"}),
        (("rui",), set[str]()),
        ((), set[str]()),
    ],
)
def test_a_site_joins_the_runs_of_those_whom_its_policy_names(
    signers: tuple[str, ...] | None, allowed: set[str]
) -> None:
    for person in (ANA, INES):
        if person.name in allowed:
            check_signer(replace(policy(), signers=signers), person, "north")
            continue
        with pytest.raises(
            PolicyError, match=rf"north does not allow a run that {person.name} \({person.role}\) signed"
        ):
            check_signer(replace(policy(), signers=signers), person, "north")


def test_a_refusal_of_a_signer_names_the_rule() -> None:
    with pytest.raises(PolicyError) as refused:
        check_signer(replace(policy(), signers=("coordinator", "tom")), INES, "north")
    assert str(refused.value) == (
        'north does not allow a run that ines (researcher) signed: its policy says signers = ["coordinator", "tom"]; '
        "change the run, or let the site change its policy (policy: signers)"
    )


@pytest.mark.parametrize(
    ("asked", "listed", "refused"),
    [
        ((), (), None),
        (("ines",), ("ines",), None),
        (("ines",), ("researcher",), None),
        (("researcher",), ("researcher", "ana"), None),
        (("researcher",), ("ines",), "researcher"),  # all researchers are more than one
        (("ines", "rui"), ("researcher",), "rui"),
        (("ines",), (), "ines"),
        (("stranger",), ("researcher",), "stranger"),
        (("stranger",), ("stranger",), None),
    ],
)
def test_the_model_goes_to_nobody_whom_the_policy_does_not_name(
    asked: tuple[str, ...], listed: tuple[str, ...], refused: str | None
) -> None:
    settings, rule = replace(run_settings(), recipients=asked), replace(policy(), recipients=listed)
    if refused is None:
        check_recipients(rule, settings, make_roster(), "north")
        return
    with pytest.raises(
        PolicyError, match=f"a run whose model {refused} may have: its policy says recipients = "
    ) as found:
        check_recipients(rule, settings, make_roster(), "north")
    assert found.value.rule == "recipients"
