"""The books: inbox, objects, links, decisions, actions, review acts, lookups, wake-ups, switches, workers.

Revision ID: 0001
Revises:
"""

from worker.db.migrations import run_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0001_books.sql")


def downgrade() -> None:
    raise RuntimeError("the books are never taken down; restore a backup instead")
