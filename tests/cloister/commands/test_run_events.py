"""`cloister run events` prints what the server's store has of a run."""

import json
from pathlib import Path

from server.settings import read_consortium
from server.store.store import Store
from tests.cloister.in_process import Run
from tests.server.store.stores import run_named


def test_the_events_of_a_run_are_printed_one_on_each_line(tmp_path: Path, cloister: Run) -> None:
    (tmp_path / "consortium.toml").write_text('consortium = "demo"\nlisten = "localhost:0"\n', encoding="utf-8")
    printed = cloister("run", "events", tmp_path)
    assert (printed.returncode, printed.stdout) == (1, "")
    assert "there is no run yet; submit one first" in printed.stderr
    written = [{"event": "round", "round": number, "why": "“ü”"} for number in range(1200)]
    with Store.open(read_consortium(tmp_path)) as store:
        record = store.record(store.submit(run_named("first")).digest)
        with record.together():
            for event in written:
                record.append(event)
        store.record(store.submit(run_named("second")).digest).append({"event": "started"})
    lines = cloister("run", "events", tmp_path / "consortium.toml", "fir").stdout.splitlines()
    assert [json.loads(line) for line in lines] == written
    assert cloister("run", "events", tmp_path).stdout == '{"event": "started"}\n'
    assert "there is no run “third”" in cloister("run", "events", tmp_path, "third").stderr
