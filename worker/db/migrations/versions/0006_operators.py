"""Operators of the console, their roles and sessions. Only adds.

Revision ID: 0006
Revises: 0005
"""

from worker.db.migrations import run_sql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0006_operators.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
