"""What engines that spread a table by id or by time refuse: docs/scaling.md says that the tables are free of it."""

import re

import pytest
from sqlalchemy import UniqueConstraint

from consumer.store.rows.upsert import _upsert_sql
from consumer.store.schema import ANALYTICS_TABLES, KEY, metadata


@pytest.mark.parametrize("name", ANALYTICS_TABLES)
def test_every_unique_index_holds_id_and_time(name: str) -> None:
    table = ANALYTICS_TABLES[name]
    unique = [[column.name for column in table.primary_key.columns]]
    unique += [[column.name for column in index.columns] for index in table.indexes if index.unique]
    unique += [
        [column.name for column in constraint.columns]
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    assert all({"id", "timestamp"} <= set(columns) for columns in unique), unique


@pytest.mark.parametrize("name", ANALYTICS_TABLES)
def test_no_upsert_changes_the_key(name: str) -> None:
    sql = _upsert_sql("public", ANALYTICS_TABLES[name])
    [changed] = re.findall(r"DO UPDATE SET \(([^)]*)\)", sql)
    assert changed
    assert not set(changed.split(", ")) & set(KEY)


def test_no_foreign_key_points_at_a_table_of_events() -> None:
    assert not [key for table in metadata.tables.values() for key in table.foreign_keys]
