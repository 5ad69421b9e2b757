"""People's sessions, and which server leads."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "sessions",
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("person", sa.String, nullable=False, index=True),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("made", sa.Float(53), nullable=False),
        sa.Column("ends", sa.Float(53), nullable=False, index=True),
    )
    op.create_table("leaders", sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
                    sa.Column("since", sa.Float(53), nullable=False))  # fmt: skip
