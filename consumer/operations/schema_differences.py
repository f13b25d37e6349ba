"""The database -> what alembic would change to make it as the models are."""

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from consumer.settings import ConsumerSettings
from consumer.store.database import connect
from consumer.store.schema import metadata


async def schema_differences(settings: ConsumerSettings) -> list[str]:
    """One text for each difference; empty when there is none. Raises DATABASE_ERRORS and SQLAlchemyError."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(settings.database_url, application_name="telemetry-audit"),
        poolclass=NullPool,
    )

    def compare(connection: Connection) -> list[str]:
        options = {
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name in (None, "ingest"),
        }
        context = MigrationContext.configure(connection, opts=options)
        return [_named(difference) for difference in compare_metadata(context, metadata)]

    try:
        async with engine.connect() as connection:
            return await connection.run_sync(compare)
    finally:
        await engine.dispose()


def _named(difference: Any) -> str:
    """Alembic's tuple of what to do and with what, without the objects' long forms."""
    parts = difference[0] if isinstance(difference, list) else difference
    return " ".join(
        str(getattr(part, "name", part)) for part in parts if isinstance(part, str) or hasattr(part, "name")
    )
