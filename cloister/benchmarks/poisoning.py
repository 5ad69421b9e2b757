"""`cloister bench poisoning`: the effect of one poisoning member on the reference study, with votes and without.

Sites and server are the production code, in this process; `simulations.attacks.poisoning` describes the attack. Votes
are flipped at random, so no two measurements are alike.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from privacy.run.tables import Vote
from simulations.attacks.poisoning import LIAR, SINCE, poisoned_run

_SITES = (4, 6)
_TOLERANCE = 0.1  # nats


def measure(epsilon: float, rounds: int) -> dict[str, Any]:
    """Run the study over four and over six sites, without votes and with votes at this ε."""
    rows = []
    logging.getLogger("cloister").setLevel(logging.ERROR)
    for sites in _SITES:
        for vote in (None, Vote(epsilon, _TOLERANCE)):
            with TemporaryDirectory(prefix="cloister-bench-") as folder:
                result = poisoned_run(Path(folder, "study"), sites, rounds, vote)
            rows.append({
                "sites": sites,
                "vote_epsilon": epsilon if vote else None,
                "accuracy": result.accuracy,
                "undone": list(result.undone),
                "found": result.excluded,
            })  # fmt: skip
    return {"rows": rows, "rounds": rounds, "liar": LIAR, "since": SINCE}


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = [f"{'sites':>5}  {'votes':<8}{'accuracy':>9}{'undone':>8}  found"]
    for row in report["rows"]:
        votes = "none" if row["vote_epsilon"] is None else f"ε {row['vote_epsilon']:g}"
        named = ", ".join(f"{site} in round {number}" for site, number in row["found"].items()) or "–"
        lines.append(f"{row['sites']:>5}  {votes:<8}{row['accuracy']:>9.3f}{len(row['undone']):>8}  {named}")
    return "\n".join([
        *lines, "", f"{report['liar']} poisons from round {report['since']} on, of {report['rounds']} rounds",
    ])  # fmt: skip
