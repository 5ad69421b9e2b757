"""Runs, with their states, events and sums."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False, index=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("submitted", sa.Float(53), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("reason", sa.LargeBinary, nullable=False),
        sa.Column("started", sa.Float(53)),
        sa.Column("ended", sa.Float(53)),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("released", sa.Integer, nullable=False),
    )
    op.create_table("states", _run(), sa.Column("value", sa.LargeBinary, nullable=False))
    op.create_table("events", _run(), _number("number"), sa.Column("value", sa.LargeBinary, nullable=False))
    op.create_table(
        "sums",
        _run(),
        _number("round"),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "chunks",
        _run(),
        _number("round"),
        sa.Column("version", sa.String(32), primary_key=True),
        _number("number"),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )


def _run() -> sa.Column[str]:
    return sa.Column("run", sa.String(64), sa.ForeignKey("runs.digest"), primary_key=True)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, primary_key=True, autoincrement=False)
