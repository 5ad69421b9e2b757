"""docs/api.md: its Python example runs, and its tables and limits are those of the code."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

import cloister
from privacy.run.people import ROLES, may
from server.api import asking, following, guard, listening, people
from server.settings import ApiSettings
from server.store.store import MOST_WAITING
from tests.server.api.consortia import Consortium, serving, set_api
from transport.api import LARGEST_RUN
from transport.http_connections import HEAD_SECONDS

if TYPE_CHECKING:
    import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_python_example_submits_a_run_and_follows_it(
    federation_keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert code
    consortium = Consortium.make(federation_keys, tmp_path / "consortium")
    set_api(consortium)
    (consortium.folder / "run.manifest").write_bytes(consortium.sign("lungs"))
    with serving(consortium) as server, chdir(consortium.folder):
        digest = server.queue.submit((consortium.folder / "run.manifest").read_bytes(), "rosa").digest
        server.store.record(digest).append({"event": "round", "round": 1, "sites": ["north"]})
        server.store.mark(digest, "finished")
        exec(code[1].replace("ines", "rosa").replace("fed.example.org:9442", server.address), {})  # noqa: S102
    assert capsys.readouterr().out == "1 ['north']\nfinished\n"
    listed = re.search(r"`Client` has (.*?);", DOCUMENT, re.DOTALL)
    assert listed
    public = {name for name in vars(cloister.Client) if not name.startswith("_")} - {"api", "close", "token"}
    assert set(re.findall(r"`(\w+)`", listed[1])) == public


def test_every_limit_that_the_document_names_is_the_code_s() -> None:
    seconds = listening.HANDSHAKE_SECONDS, HEAD_SECONDS, guard.BODY_SECONDS, guard.SEND_SECONDS
    for line in (
        f"| {LARGEST_RUN >> 20} MiB; {guard.LARGEST_BODY >> 10} KiB; {listening.LARGEST_HEAD >> 10} KiB |",
        "| {:g}, {:g}, {:g} and {:g} s |".format(*seconds),
        f"| {asking.RATE:g} and {guard.RATE:g} a second, {asking.BURST:g} and {guard.BURST:g} at once |",
        f"| {asking.FAILURES_BURST:g}, then one in {1 / asking.FAILURES_RATE:g} s |",
        f"| {HEAD_SECONDS:g} s |",
        f"| {MOST_WAITING} |",
        f"| {listening.AT_ONCE}; {ApiSettings.connections_per_address} |",
        f"| {following.AT_ONCE}; {following.AT_ONCE_OF_ONE} |",
        f"| {people.MOST_SESSIONS}; one more ends the oldest |",
    ):
        assert line in DOCUMENT


def test_the_table_of_endpoints_names_every_one_and_who_may() -> None:
    rows = re.findall(r"^\| `(?:GET|POST|DELETE)[^|]*\|[^|]*\| ([^|]*) \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) == 9
    for right in ("sign", "stop", "audit"):
        named = ", ".join(role for role in ROLES if may(role, right))
        assert any(row.startswith(named) for row in rows), right
