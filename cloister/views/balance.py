"""Show a site's ledgers: their runs, the budget as a bar, and the effect of a planned run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CELLS = 30
_ROW = "{:<10} {:<10} {:>6} {:>7} {:>6} {:>6} {:>8}  {}"


def show(report: dict[str, Any], console: Console, *, rounds: bool) -> None:
    """Print the contents of a site's ledgers, in 80 columns."""
    _line(console, _ROW.format("run", "for", "rounds", "σ", "q", "steps", "ε alone", "charged"), "bold")
    _show_runs(report, console, rounds=rounds)
    if not report["runs"]:
        _line(console, "nothing was ever charged")
    _show_balance(report, console)
    records = report["records_per_person"]
    unit = "person" if records == 1 else f"person with up to {records} records"
    _line(console, f"  about     {report['lineage']}, at {report['site']}; for each {unit}, at δ {report['delta']:g}")
    if report["delta_warning"]:
        _line(console, f"! {report['delta_warning']}", "yellow")
    held_out = report["held_out"]
    _show_runs(held_out, console, rounds=rounds)
    _show_balance(held_out, console)
    _line(console, "  about     held-out records: never trained on, with their own budget")
    if not agree(report):
        _line(console, "✗ the accountants disagree: do not trust these figures; report this with the ledger", "red")


def agree(report: dict[str, Any]) -> bool:
    """Return whether the accountants agree on both ledgers."""
    return bool(report["cross_check"]["agree"] and report["held_out"]["cross_check"]["agree"])


def _show_runs(of: dict[str, Any], console: Console, *, rounds: bool) -> None:
    for run in of["runs"]:
        name, alone = run["run"][:8], _number(run["epsilon"])
        _line(console, _row(run, name, run["purpose"], str(run["rounds"]), alone))
        for entry in run["entries"] if rounds else ():
            attempt = f"attempt {entry['attempt']}" if entry["attempt"] > 1 else ""
            _line(console, _row(entry, "", attempt, str(entry["round"]), ""), "dim")


def _show_balance(of: dict[str, Any], console: Console) -> None:
    spent, budget = of["spent"], of["budget"]
    _line(console, f"{_bar(spent, spent, budget)} ε {_number(spent)} of {_number(budget)}, {_number(of['left'])} left")
    if not of["runs"]:
        return
    _line(console, f"  replacing a person instead of adding or removing one: ε {_number(of['spent_replace_one'])}")
    check = of["cross_check"]
    prv = f"– ({check['why_no_prv']})" if check["why_no_prv"] else _number(check["prv"])
    over = ["for each record" if of["records_per_person"] > 1 else "", "without discrete noise" * check["parts"]]
    notes = "".join(f", {part}" for part in over if part)
    _line(
        console, f"  checked   PLD {_number(check['pld'])}, RDP {_number(check['rdp'])} (from above), PRV {prv}{notes}"
    )


def show_plan(report: dict[str, Any], console: Console) -> None:
    """Print the effect of a run on a ledger, in 80 columns."""
    sigma, rate, steps = report["noise_multiplier"], report["sample_rate"], report["steps"]
    _line(
        console, f"{report['run']} costs ε {_number(report['cost'])} by itself (σ {sigma:g}, q {rate:g}, {steps} steps)"
    )
    if report["votes"]:
        _line(console, f"  and its votes cost ε {_number(report['votes'])} of the held-out records")
    spent, after, budget = report["spent"], report["spent_after"], report["budget"]
    _line(console, f"{_bar(spent, after, budget)} ε {_number(spent)} → {_number(after)} of {_number(budget)}, "
                   f"{_number(report['left_after'])} left")  # fmt: skip
    if report["delta_warning"]:
        _line(console, f"! {report['delta_warning']}", "yellow")
    if report["allowed"]:
        _line(console, f"✓ {report['site']} would take part")
        return
    for refusal in report["refusals"]:
        _line(console, f"✗ {refusal}", "red")
    fits = report["noise_multiplier_that_fits"]
    if fits is None:
        _line(console, "  no noise makes it fit the remaining budget; plan fewer steps or a lower rate")
    elif fits > sigma:
        _line(console, f"  noise_multiplier = {fits:g} would fit the remaining budget")


def show_verified(report: dict[str, Any], console: Console) -> None:
    """Print what was verified about a site's ledgers, and what cannot be."""
    for ledger in report["ledgers"]:
        _line(console, f"✓ {ledger['ledger']}: complete, and signed with {ledger['site']}'s key up to its last line")
        _line(console, f"  lineage {ledger['lineage']}, {ledger['entries']} entries")
        _line(console, f"  head {ledger['head']}")
        for before in ledger["adopted"]:
            check = f"verified with the key {before['signed_by'][:16]}" if before["signed_by"] else "NOT VERIFIED"
            _line(console, f"  the first {before['entries']} entries date from before {before['time'][:10]}, {check}")
        kept = (
            "as new as the last head that the site keeps" if ledger["last_head_kept"] else "no last head is kept here"
        )
        _line(console, f"  {kept}")
    for head in report["heads"]:
        _line(console, f"✓ contains the head {head}")
    _line(console, "not verifiable here: whether the last lines are missing, unless a head shows it; a server keeps")
    _line(console, "  the last head. Anyone with the site's signing key could also rewrite the whole ledger")


def _row(of: dict[str, Any], name: str, purpose: str, rounds: str, alone: str) -> str:
    sigma, rate = ("–" if of[name] is None else f"{of[name]:g}" for name in ("noise_multiplier", "sample_rate"))
    return _ROW.format(name, purpose, rounds, sigma, rate, of["steps"], alone, of["time"][:16].replace("T", " "))


def _bar(spent: float | None, after: float | None, budget: float | None) -> str:
    """Draw a budget as a bar: spent, planned, left."""
    if not budget:  # infinite
        return "░" * _CELLS
    full, planned = (
        _CELLS if epsilon is None else min(_CELLS, round(epsilon / budget * _CELLS)) for epsilon in (spent, after)
    )
    return "█" * full + "▒" * (planned - full) + "░" * (_CELLS - planned)


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text.rstrip(), style=style, markup=False, soft_wrap=True)
