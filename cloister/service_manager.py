"""Tell systemd how this process is doing: that it is ready, still works, and stops (sd_notify(3)).

Where `NOTIFY_SOCKET` is not set, nothing is told to anybody.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PER_INTERVAL = 3  # signs of life in the time after which systemd would miss one


def notify(state: str) -> None:
    """Send a state such as `READY=1`; whoever asked for it and is gone does not matter."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    if address.startswith("@"):  # a name in Linux's abstract namespace
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)


def ready() -> None:
    """Say that the process does what it is there for. Saying it again changes nothing."""
    notify("READY=1")


@contextmanager
def watched(works: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Give systemd a sign of life as often as it asks for, while `works` returns; at the end, say so.

    `works` is called in a thread of its own. If it hangs or raises, there are no more signs.
    """
    ended = threading.Event()
    if interval := _interval():
        threading.Thread(target=_show_life, args=(interval, works, ended), name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        notify("STOPPING=1")


def _show_life(interval: float, works: Callable[[], object], ended: threading.Event) -> None:
    while not ended.wait(interval):
        works()
        notify("WATCHDOG=1")


def _interval() -> float | None:
    """Return how many seconds to wait between two signs; None if nobody awaits them from this process."""
    text, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or (process and process != str(os.getpid())):
        return None
    return int(text) / 1e6 / _PER_INTERVAL or None
