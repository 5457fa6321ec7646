"""Alembic's entry: run the migrations on the connection that `migrate` hands in, one transaction for each."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
