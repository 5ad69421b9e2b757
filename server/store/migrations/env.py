"""Alembic runs this file: it migrates in the transaction that `server.store.schema` has open."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
