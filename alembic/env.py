"""Migrations on the services' own address: one rule for URLs, one driver."""

import asyncio
import sys

from alembic import context
from alembic.autogenerate.rewriter import Rewriter
from alembic.operations import ops
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from consumer.store.database import connect
from consumer.store.grants import same_grants
from consumer.store.schema import ANALYTICS_TABLES, metadata
from shared.database_settings import DatabaseSettings
from shared.errors import WrongSetting
from shared.settings import load

OUR_SCHEMAS = {None, "public", "ingest"}


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Schemas of a rebuild under way are no drift."""
    return kind != "schema" or name in OUR_SCHEMAS


grants = Rewriter()


@grants.rewrites(ops.CreateTableOp)
def with_grants(_: object, __: object, created: ops.CreateTableOp) -> list[ops.MigrateOperation]:
    """Whoever uses the other analytics tables uses a new one, without a step that somebody could forget."""
    if created.table_name not in ANALYTICS_TABLES:
        return [created]
    return [created, ops.ExecuteSQLOp(same_grants(created.table_name))]


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_schemas=True,
        include_name=is_ours,
        compare_server_default=True,
        transaction_per_migration=True,
        process_revision_directives=grants,
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate_online(settings: DatabaseSettings) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(
            settings.database_url, application_name="telemetry-migrate", statement_timeout_s=0
        ),
        poolclass=NullPool,
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


try:
    database_settings = load(DatabaseSettings)
except WrongSetting as error:
    sys.stderr.write(f"alembic: {error}\n")
    sys.exit(2)  # as the processes do

context.config.attributes["partition_interval"] = database_settings.partition_interval

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(migrate_online(database_settings))
