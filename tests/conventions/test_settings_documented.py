"""Every setting stands in deploy/env.txt and in docs/settings.md, with its true default, and nothing else does."""

import re
from functools import cache
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from consumer.settings import ConsumerSettings
from receiver.settings import ReceiverSettings
from viewer.settings import ViewerSettings

ROOT = Path(__file__).resolve().parents[2]
ENV_LINE = re.compile(r"^# ?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)

# What env.txt sets for others than our processes, and who reads it.
READ_BY_OTHERS = {
    "MIGRATE_WAIT_SECONDS": "deploy/migrate.sh",
    "ANALYTICS_READER_PASS": "docker-compose.yml",
    "COLLECTOR_CORS_ORIGIN": "docker-compose.yml",
    "GRAFANA_ADMIN_PASS": "docker-compose.yml",
    "VIEWER_PASS": "docker-compose.yml",
    "POSTGRES_HOST_PORT": "docker-compose.yml",
}


@cache
def settings() -> dict[str, FieldInfo]:
    """Every setting of the processes by its variable's name."""
    fields = ReceiverSettings.model_fields | ConsumerSettings.model_fields | ViewerSettings.model_fields
    return {name.upper(): field for name, field in fields.items()}


def default_of(field: FieldInfo) -> str:
    """As one would write it into .env; empty when there is none."""
    match field.default:
        case None | ():
            return ""
        case bool() as flag:
            return str(flag).lower()
        case tuple() as parts:
            return ",".join(parts)
        case SecretStr():
            raise AssertionError("a secret has no default")
        case value:
            return str(value)


def rows_of_the_page() -> list[str]:
    """The rows that docs/settings.md must have, to paste."""
    return [
        f"| `{name}` | {default and f'`{default}`'} | {field.description} |"
        for name, field in settings().items()
        for default in [default_of(field)]
    ]


def test_every_setting_has_a_sentence() -> None:
    """The table is made of them."""
    assert [name for name, field in settings().items() if not field.description] == []


def test_env_txt_names_every_setting_with_its_default_and_no_other() -> None:
    """It is what people copy to .env: a wrong default there is a wrong belief, a wrong name does nothing at all."""
    template = (ROOT / "deploy/env.txt").read_text()
    found = dict(ENV_LINE.findall(template))
    assert len(found) == len(ENV_LINE.findall(template)), "a name stands there twice"
    expected = {name: default_of(field) for name, field in settings().items()}
    assert {name: value for name, value in found.items() if name not in READ_BY_OTHERS} == expected
    assert found.keys() & READ_BY_OTHERS.keys() == READ_BY_OTHERS.keys()


@pytest.mark.parametrize(("name", "file"), READ_BY_OTHERS.items())
def test_a_variable_for_others_is_read_by_them(name: str, file: str) -> None:
    """A variable that nobody reads is a knob that turns nothing."""
    assert name in (ROOT / file).read_text()


def test_env_txt_copied_as_it_is_changes_nothing() -> None:
    """`cp deploy/env.txt .env` must leave every default, so that each line one uncomments is a decision."""
    active = [line for line in (ROOT / "deploy/env.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert active == []


def test_the_page_of_settings_is_made_of_the_settings() -> None:
    """A row that lags behind the code misleads whoever looks there first."""
    rows = [line for line in (ROOT / "docs/settings.md").read_text().splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(rows_of_the_page()), "\n".join(rows_of_the_page())
