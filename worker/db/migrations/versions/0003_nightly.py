"""The nightly comparison: runs with their slices and findings; what a row's digest and money are; paid periods. Only adds.

Revision ID: 0003
Revises: 0002
"""

from worker.db.migrations import run_sql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0003_nightly.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
