"""The joining port: TLS without client certificates, a few connections at a time, each with one deadline."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from privacy.errors import CloisterError, UnreachableError
from privacy.run.invitation import PROOF_BYTES
from server.hub.listening import check_free, sockets
from server.joining.limits import Limits
from server.joining.requests import log_answer
from transport.address import read_address
from transport.channel import joining_context
from transport.joining import Line, greeting, read_request
from transport.pki import check_server_certificate, read_certificate

if TYPE_CHECKING:
    from server.joining.requests import Requests
    from transport.channel import TlsFiles

log = logging.getLogger("cloister.joining")

SECONDS = 20.0  # of one connection
_HANDSHAKE_SECONDS = 5.0
_WAITING = 16  # connections that the system holds for us


class JoiningPort:
    """Serves requests to join, each in a thread of its own."""

    def __init__(self, requests: Requests, tls: TlsFiles, seconds: float = SECONDS) -> None:
        self._requests, self._tls, self._seconds = requests, tls, seconds
        self._limits, self._listening = Limits(), list[socket.socket]()
        self._stopped = threading.Event()

    def start(self, listen: str) -> int:
        """Listen, and return the port.

        Raises:
            KeyFileError: if the server's certificate cannot be used.
            UnreachableError: if the address cannot be listened on.
        """
        place = read_address(listen, listening=True)
        joining_context(self._tls)
        check_server_certificate(self._tls.certificate, self._tls.authority)
        check_free(place)
        self._listening = sockets(place, _WAITING)
        for listening in self._listening:
            threading.Thread(target=self._accept, args=(listening,), name="joining", daemon=True).start()
        return int(self._listening[0].getsockname()[1])

    def stop(self) -> None:
        """Close the port."""
        self._stopped.set()
        for listening in self._listening:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        while not self._stopped.is_set():
            try:
                connection, (address, *_) = listening.accept()
            except OSError:  # closed, or the caller has gone, or too many files are open
                self._stopped.wait(0.05)
                continue
            if self._limits.admit(address):
                threading.Thread(target=self._serve, args=(connection, address), name="joining", daemon=True).start()
            else:
                connection.close()

    def _serve(self, connection: socket.socket, address: str) -> None:
        try:
            connection.settimeout(min(_HANDSHAKE_SECONDS, self._seconds))
            with joining_context(self._tls).wrap_socket(connection, server_side=True) as secured:
                self._talk(Line(secured, self._seconds), address)
        except UnreachableError:
            log.debug("%s left before it had asked", address)
        except CloisterError as error:
            log.warning("a request to join from %s failed: %s", address, error)
        except OSError as error:
            log.debug("a connection from %s failed: %s", address, error)
        finally:
            connection.close()
            self._limits.leave(address)

    def _talk(self, line: Line, address: str) -> None:
        line.send(greeting(read_certificate(self._tls.authority).public_bytes(Encoding.DER)))
        standing, invited = self._requests.standing(line.exactly(PROOF_BYTES))
        line.send(standing.to_bytes())
        if invited is None:
            log.warning("%s asked to join with an invitation that is %s", address, standing.state.name.lower())
            return
        answer = self._requests.answer(invited, read_request(line))
        line.send(answer.to_bytes())
        log_answer(answer, invited.name, address)
