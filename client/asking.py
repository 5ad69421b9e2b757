"""Ask a running server to let a site or a person join.

Nothing is sent before the server has shown a certificate for its name, issued by the authority that the invitation
names: first its authority's certificate is fetched and compared, then a second connection trusts this authority alone.
"""

from __future__ import annotations

import ssl
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from privacy.errors import AuthenticityError, MalformedError, UnreachableError
from transport.address import Address, read_address
from transport.channel import authority_context, not_ours, unaccepted
from transport.dialling import cause, dial, left
from transport.joining import Line, open_standing, read_answer, read_greeting, read_standing, request_bytes
from transport.presented import issuer_remark
from transport.proxies import proxy_for

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from privacy.run.invitation import Invitation
    from transport.joining import Answer

_SECONDS = 30.0  # for the answer to a request; approving may take a moment
_CONNECT_SECONDS = 3.5  # until the server has shown who it is
_REMARK_SECONDS = 1.0  # to see who issued another service's certificate


class Asking:
    """One connection to the joining port, over which one request may be made."""

    def __init__(self, invitation: Invitation, proxy: str | None = None) -> None:
        """Connect, check the server, and show the invitation.

        Args:
            invitation: of whoever asks.
            proxy: as in `[network]` of a site's settings.

        Raises:
            AuthenticityError: if the server is not the consortium's, or does not know the invitation.
            UnreachableError: if no joining port answers.
        """
        self._invitation = invitation
        self._place = Address(read_address(invitation.server).host, invitation.joining_port)
        self._proxy = proxy_for(self._place.host, proxy)
        authority = self._authority()
        self._line = self._connect(authority_context(authority))
        try:
            self._greeted(self._line)
            self._line.send(invitation.proof)
            self.used_by = self._standing()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._line.__exit__(None, None, None)

    def ask(self, request: bytes) -> Answer:
        """Send the request, and return the answer.

        Raises:
            MalformedError: if it is no answer.
            UnreachableError: if the connection breaks.
        """
        self._line.allow(_SECONDS)
        self._line.send(request_bytes(request))
        return read_answer(self._line)

    def _standing(self) -> str | None:
        return open_standing(read_standing(self._line), self._invitation.name, str(self._place))

    def _authority(self) -> bytes:
        """Return the authority's certificate, DER, having compared it with the invitation."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent, and the answer is checked
        with self._connect(context) as line:
            authority = self._greeted(line)
        if sha256(authority).hexdigest() != self._invitation.authority:
            msg = (
                f"the server at {self._place} belongs to another consortium than this invitation; check address and "
                "port with the coordinator, and that the invitation is for this server"
            )
            raise AuthenticityError(msg)
        return authority

    def _greeted(self, line: Line) -> bytes:
        try:
            return read_greeting(line)
        except MalformedError as error:
            issuer = issuer_remark(self._place, _REMARK_SECONDS, self._proxy)
            msg = f"{self._place}: {error}{issuer}"
            raise UnreachableError(msg) from error
        except UnreachableError as error:
            issuer = issuer_remark(self._place, _REMARK_SECONDS, self._proxy)
            msg = (
                f"{self._place} speaks TLS, but does not greet as a joining port does; check address and port with the "
                f"coordinator, or, if they are right, wait a minute and try again{issuer}"
            )
            raise UnreachableError(msg) from error

    def _connect(self, context: ssl.SSLContext) -> Line:
        place, deadline, connected = self._place, time.monotonic() + _CONNECT_SECONDS, False
        try:
            plain = dial(place, _CONNECT_SECONDS, self._proxy)
            connected = True
            try:
                plain.settimeout(left(deadline))
                return Line(context.wrap_socket(plain, server_hostname=place.host), left(deadline))
            except BaseException:
                plain.close()
                raise
        except ssl.SSLCertVerificationError as error:
            what = unaccepted(str(place), "the authority in the invitation", error)
            raise AuthenticityError(what + issuer_remark(place, left(deadline), self._proxy)) from error
        except OSError as error:
            if connected:
                issuer = issuer_remark(place, left(deadline), self._proxy) if isinstance(error, ssl.SSLError) else ""
                raise UnreachableError(not_ours(str(place), "a joining port", error) + issuer) from error
            msg = f"cannot reach the joining port at {place}: {cause(error)}; or join with files: --files"
            raise UnreachableError(msg) from error
