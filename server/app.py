"""The aggregation server as a Flower `ServerApp`. The same app runs under every engine.

It reads its settings from the run's configuration: `consortium` (the path of `consortium.toml`) and `manifest` (the
signed run); with `new-epoch`, the sites make new keys first; with `retry`, a run that failed goes on. It holds no
decryption key, and it runs without torch or TenSEAL.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp

from privacy.errors import CloisterError, ConfigError, RunError, StorageError, VaultError
from privacy.folder_locks import folder_in_use
from server.protection import kept_server
from server.settings import read_consortium, read_run
from server.store.store import Store
from strategies.encrypted_strategy import EncryptedStrategy
from strategies.event_log import EventLog
from strategies.ledger_heads import LedgerHeads
from strategies.sealed_keys import SealedKeys
from transport.grid import StreamingGrid

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

    from privacy.run.manifest import SignedRun
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
    run = read_run(Path(manifest_path), place.roster())
    with folder_in_use(place.folder), Store.open(place) as store, store.lead():
        check_failure(store, run, retry=bool(context.run_config.get("retry")))
        serve_run(place, store, run, grid, new_epoch=bool(context.run_config.get("new-epoch")))


def check_failure(store: Store, run: SignedRun, *, retry: bool) -> None:
    """Submit a run, unless it was; check that it did not fail before, unless it is to be tried again.

    Raises:
        RunError: if it did, so that a server that is restarted by itself spends no site's budget. A run that failed
            before its first round has cost nothing, and may be started again.
    """
    stored = store.submit(run, run.signer.name)
    if stored.status == "failed" and not retry and store.record(run.digest).state() is not None:
        msg = f"this run failed: {stored.reason}; once the cause is corrected, go on with it: cloister server … --retry"
        raise RunError(msg)


def serve_run(place: ServerFolder, store: Store, run: SignedRun, grid: Grid, *, new_epoch: bool = False) -> None:
    """Run the rounds of a submitted run that no earlier process has ended. This process must lead.

    Raises:
        CloisterError: if the run fails, which the store then says, or if keys, settings or the store cannot be used.
    """
    store.mark(run.digest, "running")
    try:
        _serve(place, run, grid, EventLog(store.record(run.digest)), new_epoch=new_epoch)
    except (StorageError, VaultError):  # not the run's failure: it goes on once the store can be used
        raise
    except CloisterError as error:
        store.mark(run.digest, "failed", str(error))
        raise
    store.mark(run.digest, "finished")


def _serve(place: ServerFolder, run: SignedRun, grid: Grid, event_log: EventLog, *, new_epoch: bool) -> None:
    roster, settings = place.roster(), run.manifest.settings
    letters = SealedKeys(place.folder / place.settings.epochs)
    heads = LedgerHeads(place.folder / place.settings.ledger_heads, held_out=settings.kind.held_out)
    grid = StreamingGrid(grid)  # adds updates as they arrive: one in memory, not every site's
    strategy = EncryptedStrategy(
        run, roster, event_log, letters, heads, place.tls, new_epoch=new_epoch, newer=grid.newer_roster
    )
    event_log.record(
        "resumed" if strategy.resumed else "started",
        run=run.digest,
        name=settings.name,
        rounds=settings.rounds,
        ended=strategy.ended,
        sites=list(settings.cohort.sizes),
        noise_multiplier=run.manifest.noise_multiplier,
        profile=settings.profile,
    )
    try:
        left, seconds = settings.rounds - strategy.ended, settings.cohort.round_deadline_seconds
        strategy.start(grid, ArrayRecord(), left, timeout=seconds)
        strategy.finish(grid)
        if not strategy.released:
            msg = "no round had enough sites: nothing was trained and no model was saved"
            raise RunError(msg)
    except StorageError:
        raise
    except CloisterError as error:
        event_log.record("failed", reason=str(error), rounds=strategy.released)
        raise
    finally:
        strategy.close()
    event_log.record("finished", rounds=strategy.released, model=strategy.model)
