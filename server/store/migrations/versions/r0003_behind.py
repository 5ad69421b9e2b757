"""Which sites lack the last model of a run that has ended."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("runs", sa.Column("behind", sa.String, nullable=False, server_default=""))
    op.create_index("ix_runs_behind", "runs", ["behind"])
