"""The aggregation server as a Flower `ServerApp`. The same app runs under every engine.

It reads its settings from the run's configuration: `consortium` (the path of `consortium.toml`) and `manifest` (the
signed run); with `new-epoch`, the sites make new keys first; with `retry`, a run that failed goes on. It holds no
decryption key, and it runs without torch or TenSEAL.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp

from privacy.errors import CloisterError, ConfigError, RunError
from privacy.folder_locks import folder_in_use
from server.protection import kept_server
from server.settings import read_consortium, read_run
from strategies.encrypted_strategy import EncryptedStrategy
from strategies.event_log import EventLog
from strategies.ledger_heads import LedgerHeads
from strategies.run_memory import check_failure, note_failure
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
        RunError: if the run ended without a released round, the sites' models diverged, or another process serves it.
    """
    consortium, manifest_path = (str(context.run_config.get(key) or "") for key in ("consortium", "manifest"))
    if not consortium or not manifest_path:
        msg = "the run's configuration must name `consortium` (consortium.toml) and `manifest` (a signed run)"
        raise ConfigError(msg)
    place = read_consortium(Path(consortium))
    kept_server(place).ready()
    run = read_run(Path(manifest_path), place.roster())
    folder = place.folder / place.settings.runs / f"{run.manifest.settings.name}-{run.digest[:8]}"
    with folder_in_use(place.folder), closing(EventLog(folder)) as event_log, event_log.alone():
        check_failure(folder, retry=bool(context.run_config.get("retry")))
        _serve(place, run, grid, event_log, new_epoch=bool(context.run_config.get("new-epoch")))


def _serve(place: ServerFolder, run: SignedRun, grid: Grid, event_log: EventLog, *, new_epoch: bool) -> None:
    """Run the rounds that no earlier process has ended."""
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
        while left := settings.rounds - strategy.ended:  # a round that waits for its sites counts once it has ended
            strategy.start(grid, ArrayRecord(), left, timeout=settings.cohort.round_deadline_seconds)
        strategy.finish(grid)
        if not strategy.released:
            msg = "no round had enough sites: nothing was trained and no model was saved"
            raise RunError(msg)
    except CloisterError as error:
        note_failure(event_log.folder, str(error))
        event_log.record("failed", reason=str(error), rounds=strategy.released)
        raise
    finally:
        strategy.close()
    event_log.record("finished", rounds=strategy.released, model=strategy.model)
