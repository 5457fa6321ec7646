"""What people are told: the outbox of alerts, with their routes and steps. Only adds.

Revision ID: 0005
Revises: 0004
"""

from worker.db.migrations import run_sql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0005_alerts.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
