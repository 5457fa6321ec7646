"""The whole policy: acts, standing, credits, notices, alerts, cases, API tokens. Only adds.

Revision ID: 0002
Revises: 0001
"""

from worker.db.migrations import run_sql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0002_whole_policy.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
