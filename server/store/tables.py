"""The tables of the store, as the newest migration leaves them.

A column that can be encrypted has `Sealed` as its type: `server.store.sealing` says how, and which key names a value.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table

METADATA = MetaData()


class Sealed(LargeBinary):
    """Bytes that are encrypted if the server's folder is."""

    cache_ok = True


RUNS = Table(
    "runs",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order of submission
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", String, nullable=False, index=True),
    Column("document", LargeBinary, nullable=False),  # signed, in wire form
    Column("by", String, nullable=False),
    Column("submitted", Float(53), nullable=False),  # times are in seconds since 1970
    Column("status", String(16), nullable=False, index=True),
    Column("reason", Sealed, nullable=False),
    Column("started", Float(53)),
    Column("ended", Float(53)),
    Column("rounds", Integer, nullable=False),
    Column("released", Integer, nullable=False),
    Column("behind", String, nullable=False, server_default="", index=True),  # sites' names, with commas
)

STATES = Table(
    "states",
    METADATA,
    Column("run", String(64), ForeignKey("runs.digest"), primary_key=True),
    Column("value", Sealed, nullable=False),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("run", String(64), ForeignKey("runs.digest"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 1
    Column("value", Sealed, nullable=False),  # JSON
)

SUMS = Table(
    "sums",
    METADATA,
    Column("run", String(64), ForeignKey("runs.digest"), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("version", String(32), nullable=False),  # which of the chunks count
    Column("size", BigInteger, nullable=False),
)

CHUNKS = Table(
    "chunks",
    METADATA,
    Column("run", String(64), ForeignKey("runs.digest"), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("version", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 0
    Column("value", Sealed, nullable=False),
)

SESSIONS = Table(
    "sessions",
    METADATA,
    Column("token", String(64), primary_key=True),  # its SHA-256, in hex
    Column("person", String, nullable=False, index=True),
    Column("key", String, nullable=False),
    Column("made", Float(53), nullable=False),
    Column("ends", Float(53), nullable=False, index=True),
)

LEADERS = Table(
    "leaders",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the highest leads
    Column("since", Float(53), nullable=False),
)
