"""A grid over worker processes: each answers for some of the nodes, with the same app and the same bytes.

Workers are forked, so that they share the records that this process has read, and a task may be defined in a notebook.
Only bytes pass between the processes: messages as they are on the network.
"""

from __future__ import annotations

import gc
import signal
import time
from collections import deque
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import torch

from privacy.errors import ProtocolError, RunError
from transport.flower import answer
from transport.grid import ReplyGrid
from transport.parcel import decode_instruction, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from multiprocessing.connection import Connection
    from types import TracebackType
    from typing import Self

    from flwr.app import Context, Message

    from transport.flower import App

_NODE = 8  # bytes of a node's number before a message


class PoolGrid(ReplyGrid):
    """Sends messages to worker processes, one at a time to each. A context manager: workers end with it."""

    def __init__(self, run_id: int, nodes: Mapping[int, Context], app: App, workers: int) -> None:
        super().__init__(run_id)
        self._nodes, self._app = nodes, app
        self._place = {node: number % workers for number, node in enumerate(sorted(nodes))}
        self._waiting: list[deque[Message]] = [deque() for _ in range(workers)]
        self._asked: list[Message | None] = [None] * workers
        self._lines: list[Connection] = []
        self._processes = []
        forked = get_context("fork")
        for _ in range(workers):
            here, there = forked.Pipe()
            process = forked.Process(target=self._work, args=(there, [*self._lines, here]), daemon=True)
            process.start()
            there.close()
            self._lines.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        for line in self._lines:
            line.close()  # a worker that waits for a message ends
        for process in self._processes:
            if error is not None:
                process.terminate()
            process.join()

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: they are always online."""
        return sorted(self._nodes)

    def _work(self, line: Connection, others: list[Connection]) -> None:
        """Answer messages until the other end is closed; the process's main function."""
        gc.freeze()  # the parent's garbage may wait for threads that do not exist here, such as a gRPC server's
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # there is nothing to clean up
        torch.set_num_threads(1)
        for other in others:
            other.close()
        with suppress(EOFError, BrokenPipeError):
            while True:
                data = line.recv_bytes()
                context = self._nodes[int.from_bytes(data[:_NODE], "big")]
                line.send_bytes(b"".join(encode(answer(self._app, decode_instruction(data[_NODE:]), context))))

    def _send(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        if node not in self._place:
            msg = f"node {node} is not in this federation; only its sites get messages"
            raise ProtocolError(msg)
        self._waiting[self._place[node]].append(message)
        self._hand_out(self._place[node])

    def _hand_out(self, worker: int) -> None:
        """Give an idle worker its next message."""
        if self._asked[worker] is None and self._waiting[worker]:
            message = self._asked[worker] = self._waiting[worker].popleft()
            node = message.metadata.dst_node_id.to_bytes(_NODE, "big")
            try:
                self._lines[worker].send_bytes(node + b"".join(encode(message)))
            except OSError as error:
                raise _lost() from error

    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        deadline = time.monotonic() + seconds
        while seconds >= 0:
            busy = {line: worker for worker, line in enumerate(self._lines) if self._asked[worker] is not None}
            ready = wait(busy, max(0.0, deadline - time.monotonic())) if busy else []
            for line in ready:
                worker = busy[line]  # type: ignore[index]  # `wait` returns what it was given
                message, self._asked[worker] = self._asked[worker], None
                try:
                    data = self._lines[worker].recv_bytes()
                except (EOFError, OSError) as error:
                    raise _lost() from error
                self._hand_out(worker)
                if message is not None and message.metadata.message_id in waiting:
                    return self._read(data, message)
            if not ready:
                return None
        return None

    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        for place, queue in enumerate(self._waiting):
            self._waiting[place] = deque(message for message in queue if message.metadata.message_id not in message_ids)


def _lost() -> RunError:
    msg = "a worker process of the simulation has ended; is there too little memory? Use fewer processes"
    return RunError(msg)
