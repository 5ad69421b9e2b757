"""The aggregation server as a Flower `ServerApp`. The same app runs under every engine.

It reads its settings from the run's configuration: `consortium` (the path of `consortium.toml`) and `manifest` (the
signed run); with `new-epoch`, the sites make new keys first; with `retry`, a run that failed goes on. It holds no
decryption key, and it runs without torch or TenSEAL. With `unattended`, nobody mends a site while the run goes on, as
in a simulation: a site that refuses is not waited for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp

from privacy.errors import CloisterError, ConfigError, RunError, StorageError, VaultError
from privacy.folder_locks import folder_in_use
from privacy.log_fields import about
from server.protection import kept_server
from server.settings import read_consortium, read_run
from server.store.store import Store
from strategies.absences import Absences
from strategies.encrypted_strategy import EncryptedStrategy
from strategies.event_log import EventLog, label_of
from strategies.interruption import Interruption, RunInterrupted
from strategies.shared import Shared
from transport.grid import StreamingGrid

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

    from privacy.run.manifest import SignedRun
    from privacy.run.roster import Roster
    from server.settings import ServerFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds of one manifest; go on with it, if an earlier process began it.

    Raises:
        ConfigError: if the run's configuration lacks `consortium` or `manifest`.
        RunError: if the run ended without a released round, the sites' models diverged, or it failed before.
        StorageError: if the store cannot be used, or another process serves its runs.
    """
    consortium, manifest_path = (str(context.run_config.get(key) or "") for key in ("consortium", "manifest"))
    if not consortium or not manifest_path:
        msg = "the run's configuration must name `consortium` (consortium.toml) and `manifest` (a signed run)"
        raise ConfigError(msg)
    place = read_consortium(Path(consortium))
    kept_server(place).ready()
    roster = place.roster()
    run = read_run(Path(manifest_path), roster)
    with folder_in_use(place.folder), Store.open(place) as store, store.lead():
        check_failure(place, store, run, retry=bool(context.run_config.get("retry")))
        store.mark(run.digest, "running")
        serve_run(
            place,
            store,
            run,
            grid,
            roster,
            shared_by_runs(place),
            new_epoch=bool(context.run_config.get("new-epoch")),
            unattended=bool(context.run_config.get("unattended")),
        )


def check_failure(place: ServerFolder, store: Store, run: SignedRun, *, retry: bool) -> None:
    """Submit a run, unless it was; check that it did not fail before, unless it is to be tried again.

    Raises:
        RunError: if it did, so that a server that is restarted by itself spends no site's budget. A run that failed
            before its first round has cost nothing, and may be started again.
    """
    stored = store.submit(run)
    begun = store.record(run.digest).state() is not None
    earlier = place.folder / "runs" / f"{stored.name}-{run.digest[:8]}" / "state.json"
    if earlier.exists() and not begun:
        msg = f"{earlier}: an earlier version began this run; finish it with that version, or sign the run again"
        raise RunError(msg)
    if retry or stored.status not in {"failed", "stopped"} or not begun:
        return
    if stored.status == "stopped":
        msg = f"this run was {stored.reason}; to go on with it: cloister server … --retry"
        raise RunError(msg)
    msg = f"this run failed: {stored.reason}; once the cause is corrected, go on with it: cloister server … --retry"
    raise RunError(msg)


def shared_by_runs(place: ServerFolder) -> Shared:
    """Return what all runs of a server share.

    Raises:
        LedgerError: if the file with the sites' ledger heads is damaged.
    """
    return Shared.opened(place.folder / place.settings.epochs, place.folder / place.settings.ledger_heads)


def serve_run(
    place: ServerFolder, store: Store, run: SignedRun, grid: Grid, roster: Roster, shared: Shared, *,
    new_epoch: bool = False, unattended: bool = False, interruption: Interruption | None = None,
) -> None:  # fmt: skip
    """Run the rounds of a submitted run that no earlier process has ended; note in the store how it ended.

    This process must lead.

    Args:
        place: the server's folder.
        store: the server's store.
        run: the run, which the store says goes on.
        grid: reaches the run's sites.
        roster: the newest roster, of which the grid tells no news.
        shared: what all runs of this server share.
        new_epoch: have the sites make new keys first.
        unattended: whether nobody mends a site meanwhile, so that one that refuses is not waited for.
        interruption: what may ask the run to end.

    Raises:
        CloisterError: if the run fails, which the store then says, or if keys, settings or the store cannot be used.
        RunInterrupted: if the run was asked to end.
    """
    interruption, strategy = interruption or Interruption(), None
    event_log = EventLog(store.record(run.digest), label_of(run))
    # Until it has ended, any of its sites may lack its last model: also if it is stopped, and this process killed.
    store.mark_behind(run.digest, sorted(run.manifest.settings.cohort.sizes))
    try:
        with about(run=run.digest):
            strategy = EncryptedStrategy(
                run, roster, event_log, shared, place.tls, new_epoch=new_epoch,
                newer=StreamingGrid(grid).newer_roster, interruption=interruption,
                unattended=unattended,
            )  # fmt: skip
            behind = _serve(strategy, run, grid, event_log)
    except RunInterrupted:
        if interruption.reason:
            _end(store, run, event_log, "stopped", interruption.reason, strategy)
        raise
    except (StorageError, VaultError):  # not the run's failure: it goes on once the store can be used
        raise
    except CloisterError as error:
        _end(store, run, event_log, "failed", str(error), strategy)
        raise
    finally:
        if strategy is not None:
            strategy.close()
    store.mark_behind(run.digest, behind)
    store.mark(run.digest, "finished")


def bring_up_to_date(
    place: ServerFolder, store: Store, run: SignedRun, grid: Grid, roster: Roster, shared: Shared, *,
    interruption: Interruption,
) -> list[str]:  # fmt: skip
    """Deliver the sums of a run that has ended to sites that lack them; note in the store who still does.

    Args:
        place: the server's folder.
        store: the server's store.
        run: the run.
        grid: reaches the run's sites.
        roster: the newest roster.
        shared: what all runs of this server share.
        interruption: what may ask this to end.

    Returns:
        The sites that still lack the run's last model.

    Raises:
        CloisterError: if the run's record, the store or keys cannot be used.
        RunInterrupted: if this was asked to end.
    """
    event_log = EventLog(store.record(run.digest), label_of(run))
    with about(run=run.digest):
        strategy = EncryptedStrategy(
            run, roster, event_log, shared, place.tls, new_epoch=False, interruption=interruption
        )
        try:
            behind = strategy.finish(StreamingGrid(grid))
        finally:
            strategy.close()
    store.mark_behind(run.digest, behind)
    return behind


def _serve(strategy: EncryptedStrategy, run: SignedRun, grid: Grid, event_log: EventLog) -> list[str]:
    """Run the rounds that are left; return the sites that lack the last model at the end."""
    settings = run.manifest.settings
    event_log.record(
        "resumed" if strategy.resumed else "started",
        run=run.digest,
        name=settings.name,
        rounds=settings.rounds,
        ended=strategy.ended,
        sites=list(settings.cohort.sizes),
        minimum=settings.cohort.minimum,
        noise_multiplier=run.manifest.noise_multiplier,
        profile=settings.profile,
    )
    absences = Absences(event_log, grid.get_node_ids, strategy.where)
    grid = StreamingGrid(grid, absences.look)  # adds updates as they arrive: one in memory, not every site's
    while left := settings.rounds - strategy.ended:  # a round that waits for its sites has not ended
        strategy.start(grid, ArrayRecord(), left, timeout=settings.cohort.round_deadline_seconds)
    behind = strategy.finish(grid)
    if not strategy.released:
        msg = f"no round had enough sites: nothing was trained and no model was saved; {strategy.problems}"
        if event_log.late:
            msg += (
                f"; within round_deadline_seconds = {settings.cohort.round_deadline_seconds:g}, no update came from "
                f"{', '.join(sorted(event_log.late))}: sign the run with more"
            )
        raise RunError(msg)
    event_log.record("finished", rounds=strategy.released, model=strategy.model, behind=behind)
    return behind


def _end(
    store: Store, run: SignedRun, event_log: EventLog, status: Literal["failed", "stopped"], reason: str,
    strategy: EncryptedStrategy | None,
) -> None:  # fmt: skip
    event_log.record(status, reason=reason, rounds=strategy.released if strategy else 0)
    if not event_log.started:  # otherwise, which sites lack its last model is unknown: all of them are asked
        store.mark_behind(run.digest, ())
    store.mark(run.digest, status, reason)
