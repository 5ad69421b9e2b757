"""Define the error classes: every failure that a user may see is a `CloisterError`.

The first line of each class's docstring is a sentence that users see. Each message says what happened, where, and what
to do next. Malformed bytes from outside always raise one of these errors, never a bare `ValueError`.

Only `CloisterError.public` may leave the site that raised the error: a message can quote a record, so only classes that
promise not to (`may_leave_site`) let their text out.
"""

from typing import ClassVar


class CloisterError(Exception):
    """Cloister could not do what was asked."""

    may_leave_site: ClassVar[bool] = False

    @property
    def public(self) -> str:
        """The text that other parties may read: the whole message, or only the kind of error."""
        if self.may_leave_site:
            return str(self)
        sentence = (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")
        return f"{sentence}; the reason is in the site's own log"


class ConfigError(CloisterError):
    """A settings file is missing, malformed or contradicts itself."""


class ArgumentError(ConfigError, ValueError):
    """Settings that a program gives do not fit."""


class DataError(CloisterError):
    """A site's records cannot be used as they are."""


class TaskError(CloisterError):
    """A task cannot be trained as it is written."""


class DeviceError(CloisterError):
    """The processes that train a site's model together can no longer do so."""


class RefusedError(CloisterError):
    """A site's policy does not allow what a run asks for."""

    may_leave_site = True


class PolicyError(RefusedError):
    """A site's policy does not allow what a run asks for."""

    def __init__(self, text: str, *, rule: str) -> None:
        super().__init__(f"{text} (policy: {rule})")
        self.rule = rule  # the key of `[policy]`


class BudgetError(RefusedError):
    """A site's privacy budget does not cover what a run would spend."""

    may_leave_site = False  # the message shows the spend


class LedgerError(CloisterError):
    """A privacy ledger could not be read, trusted or written."""


class KeyFileError(CloisterError):
    """A key or certificate file is missing or unusable."""


class VaultError(CloisterError):
    """A site's encrypted folder could not be opened, or a file in it was altered."""


class BackupError(CloisterError):
    """A site's backup cannot be restored."""


class MalformedError(CloisterError):
    """Bytes from outside do not have the form that the protocol fixes."""

    may_leave_site = True


class AuthenticityError(CloisterError):
    """A signature, certificate or digest does not match what it claims to be."""

    may_leave_site = True


class ProtocolError(CloisterError):
    """A message is well-formed and genuine but does not belong here: wrong run, round, site or model."""

    may_leave_site = True


class StorageError(CloisterError):
    """A disk is full, or a file or a database on it cannot be read or written."""


class NotFoundError(CloisterError):
    """What was asked for does not exist."""


class EncryptionError(CloisterError):
    """Encrypting or decrypting failed, or this build of TenSEAL is not one that Cloister knows."""


class UnreachableError(CloisterError):
    """The other side could not be reached."""


class RunError(CloisterError):
    """A run ended without what it was started for."""
