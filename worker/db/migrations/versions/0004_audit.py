"""The audit chain over decisions, actions, entries and acts, and the policy versions that were in force. Only adds.

Revision ID: 0004
Revises: 0003
"""

from worker.db.migrations import run_sql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0004_audit.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
