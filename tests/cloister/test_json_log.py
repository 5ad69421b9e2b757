"""`--log json`: one object a line, and never a tensor, a record or a secret, whatever happens."""

import json
import logging
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.views.log import JsonFormatter
from privacy.errors import ConfigError, DataError
from privacy.failures import Quoting
from privacy.log_fields import about, note
from simulations.engine.federation import Federation
from tests.federations import SETTINGS, SITES, SIZES, TERMS, FederationMaker, await_condition, rounds_of
from tests.forked import ForkedAgents
from tests.ports import unused_port

LONG = 90.0  # seconds
RECORD, NAME, PASSPHRASE = "31337.8125", "Mrs Smith, 1961", "correct horse battery staple"


@pytest.fixture
def canaries(make_federation: FederationMaker) -> Federation:
    """A federation whose records can be recognised; west's cannot even be read."""
    address = f"localhost:{unused_port()}"
    sizes = {site: SIZES[site] for site in SITES if site != "west"}
    settings = replace(SETTINGS, rounds=2, cohort=replace(SETTINGS.cohort, sizes=sizes))
    federation = make_federation(settings, dict.fromkeys(SITES, TERMS), address)
    (federation.server / "consortium.toml").write_text(f'consortium = "demo"\nlisten = "{address}"\n', encoding="utf-8")
    for site in SITES:
        with (federation.paths[site] / TERMS.file).open("a", encoding="utf-8") as file:
            file.write(f"{RECORD},1,1\n" + f'"{NAME}",1,1\n' * (site == "west"))
    return federation


@pytest.mark.slow
@pytest.mark.xdist_group("agents")
def test_no_log_of_a_run_holds_a_tensor_a_record_or_a_secret(canaries: Federation) -> None:
    with ForkedAgents() as processes:
        for site in SITES:
            path = canaries.paths[site]
            arguments, env = ("--debug", "agent", str(path), "--log", "json"), {"CLOISTER_PASSPHRASE": PASSPHRASE}
            processes._forked |= {"--debug"}
            processes.start(site, path / "agent.log", *arguments, env=env)
        log, manifest = canaries.server / "server.log", str(canaries.manifest)
        server = processes.start("server", log, "server", str(canaries.server), manifest, "--log", "json")
        await_condition(lambda: server.poll() is not None, LONG)
        west = processes._children["west"][0]
        await_condition(lambda: west.poll() is not None, LONG)
    assert all(event["released"] for event in rounds_of(canaries))

    logs = {site: entries_of(canaries.paths[site] / "agent.log") for site in SITES}
    logs["server"] = entries_of(log)
    assert [entry["round"] for entry in logs["server"] if entry.get("event") == "round"] == [1, 2]
    (run,) = {entry["run"] for entry in logs["server"] if "run" in entry}
    assert {entry["site"] for entry in logs["north"] if entry["logger"] == "cloister.agent"} == {"north"}
    assert {(entry["run"], entry["round"]) for entry in logs["north"] if "round" in entry} == {(run, 1), (run, 2)}
    assert logs["west"][-1]["level"] == "error"
    assert logs["west"][-1]["message"].startswith("a record cannot be used")

    texts = {name: "".join(json.dumps(entry) for entry in entries) for name, entries in logs.items()}
    for name, text in texts.items():
        for secret in secrets_of(canaries):
            assert secret not in text, name
        assert not re.search(r"tensor\(|array\(|Traceback", text)


def entries_of(log: Path) -> list[dict[str, Any]]:
    """Every line of a log, which must be a JSON object."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert entries
    for entry in entries:
        assert entry.keys() >= {"time", "level", "logger", "message"}
    return entries


def secrets_of(federation: Federation) -> set[str]:
    """Everything secret or private in the folders, in each form in which it could be written."""
    found = {RECORD, RECORD.partition(".")[0], NAME, "Smith", PASSPHRASE}
    files = [file for path in federation.folder.glob("*") for file in path.glob("**/*")]
    keys = [file for file in files if file.suffix == ".key" or (file.parent.name == "epochs" and file.is_file())]
    assert len(keys) > 3 * len(SITES)
    for key in keys:
        data = key.read_bytes()
        found |= {data.hex()[-32:], b64encode(data)[-24:].decode()}
        if data.startswith(b"-----BEGIN"):
            body = b"".join(data.splitlines()[1:-1])
            found |= {body[20:60].decode(), b64decode(body).hex()[-32:]}
    for model in federation.folder.glob("*/models/*.safetensors"):
        data = model.read_bytes()
        weights = np.frombuffer(data[8 + int.from_bytes(data[:8], "little") :], np.float32)
        found |= {f"{abs(weight):.5g}" for weight in weights.tolist() if abs(weight) > 1e-3}
    return found


def entry_of(record: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert isinstance(entry, dict)
    return entry


def record_of(text: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("cloister.agent", logging.WARNING, __file__, 1, text, arguments, trace)


def test_an_entry_says_what_it_is_about_and_nothing_else_once_that_is_over() -> None:
    with about(site="north"):
        with about():
            note(run="1a2b", round=3)
            assert entry_of(record_of("trained")).items() >= {"site": "north", "run": "1a2b", "round": 3}.items()
        assert "run" not in entry_of(record_of("trained"))
    assert entry_of(record_of("%d of %d", 1, 2)).keys() == {"time", "level", "logger", "message"}


def test_an_event_of_a_run_adds_its_fields_but_replaces_none() -> None:
    record = record_of("round")
    record.entry = {"event": "round", "time": 1.0, "level": "x", "released": True, "epsilon": {"north": 0.5}}
    entry = entry_of(record)
    assert (entry["released"], entry["epsilon"], entry["level"]) == (True, {"north": 0.5}, "warning")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])


def test_the_text_of_an_exception_is_left_out_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quoting, "records", False)
    with pytest.raises(ValueError, match=NAME) as raised:
        int(NAME)
    entry = entry_of(record_of("failed", error=raised.value))
    assert entry["error"].startswith("ValueError at tests/cloister/test_json_log.py:")
    said = [entry_of(record_of("%s", error))["message"] for error in (KeyError(NAME), DataError(NAME))]
    assert NAME not in json.dumps([entry, *said])
    assert entry_of(record_of("%s", ConfigError("write something")))["message"] == "write something"


def test_text_from_outside_cannot_end_a_line_or_grow_without_bound() -> None:
    assert entry_of(record_of("a\nb\x1b[2J"))["message"] == "a\\nb\\x1b[2J"
    assert len(entry_of(record_of("a" * 10_000))["message"]) == 2000
