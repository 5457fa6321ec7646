"""The indexes that the console's pages read by. Only adds.

Revision ID: 0008
Revises: 0007
"""

from worker.db.migrations import run_sql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0008_console.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
