"""Retention of payloads, and erasure of a customer's personal data. Only adds.

Revision ID: 0007
Revises: 0006
"""

from worker.db.migrations import run_sql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0007_privacy.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
