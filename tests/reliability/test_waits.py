"""No wait is without a deadline, unless something else is sure to end it. This list says what that is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("cloister", "client", "server", "strategies", "transport", "privacy")
BARE = {"wait", "join", "acquire", "result", "communicate", "recv", "accept", "get"}
"""Without an argument, these wait for ever; `get` is a queue's, or a context's, which does not wait."""

_SUSPECT = re.compile(rb"\.(%s)\(\)|create_connection|urlopen|flock|subprocess" % "|".join(BARE).encode())

_HELD = "the kernel frees the lock when its holder ends, and holders keep it for one write"
ENDED = {
    "cloister/processes.py: child.wait()": "the process was killed before",
    "client/agents.py: agent.join()": "it is what the process is for: agents end when they are told to",
    "client/gradients/noisy_optimizer.py: self._ahead.result()": "our thread, which computes",
    "client/state/keyring.py: fcntl.flock(descriptor, fcntl.LOCK_EX)": _HELD,
    "server/api/listening.py: self._thread.join()": "it was told to end, and ends open requests",
    "server/coordinator.py: fcntl.flock(folder, fcntl.LOCK_EX)": _HELD,
    "server/hub/hub.py: self._bodies.acquire()": "within `asyncio.timeout`",
    "server/hub/hub.py: changed.wait()": "within `asyncio.timeout_at`",
    "server/joining/listener.py: listening.accept()": "its thread is there for that; the socket is closed at the end",
    "server/roster_watch.py: self._thread.join()": "it was told to end",
    "transport/http_connections.py: super().accept()": "the event loop calls it once somebody has connected",
    "server/store/leadership.py: self._watch.join()": "it was told to end, and the database has deadlines",
    "privacy/at_rest/protection.py: fcntl.flock(file, fcntl.LOCK_EX)": _HELD,
    "privacy/log_fields.py: _FIELDS.get()": "a context variable",
    "privacy/log_file.py: fcntl.flock(file, fcntl.LOCK_EX)": _HELD,
    "privacy/log_file.py: fcntl.flock(file, fcntl.LOCK_SH)": _HELD,
    "privacy/parallel.py: pending.popleft().result()": "our processes, which compute; if one ends, it is an error",
}


def _waits(source: bytes) -> set[str]:
    """The calls in a source that may wait for ever, as they stand there."""
    found = set[str]()
    if not _SUSPECT.search(source):  # parsing takes long
        return found
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given, text = {word.arg for word in node.keywords}, ast.unparse(node)
        bare = name in BARE and not node.args and not given
        lasting = name in {"create_connection", "urlopen"} and len(node.args) < 2 and "timeout" not in given
        locks = name == "flock" and "LOCK_NB" not in text
        runs = text.startswith(("subprocess.run(", "subprocess.check_output(")) and "timeout" not in given
        if bare or lasting or locks or runs:
            found.add(text)
    return found


def test_every_wait_has_a_deadline_or_a_reason() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "benchmarks" not in path.parts]
    waits = {f"{path.relative_to(ROOT).as_posix()}: {wait}" for path in files for wait in _waits(path.read_bytes())}
    assert waits == ENDED.keys()


def test_a_wait_without_a_deadline_would_be_found() -> None:
    endless = {"event.wait()", "queue.get()", "socket.create_connection(there)", "subprocess.run(command)"}
    assert _waits("; ".join([*endless, "thread.join(5)", "values.get('name')"]).encode()) == endless
