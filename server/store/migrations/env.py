"""Alembic runs this file: it migrates in the transaction that `server.store.schema` has open."""

from alembic import context

if config := getattr(context, "config", None):  # None if anyone else imports this
    context.configure(connection=config.attributes["connection"], transactional_ddl=False)
    context.run_migrations()
