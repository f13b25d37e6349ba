"""environment -> settings: a mistake stops the start and names the variable, never its value."""

from pathlib import Path

import pytest

from consumer.settings import ConsumerSettings
from shared.database_settings import DatabaseSettings
from shared.errors import WrongSetting
from shared.settings import IdSettings, KafkaSettings, described, load


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own environment counts."""
    for name in [*ConsumerSettings.model_fields, *IdSettings.model_fields]:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


PARTS = {"ANALYTICS_DB_USER": "u", "ANALYTICS_DB_PASS": "p", "ANALYTICS_DB_HOST": "db", "ANALYTICS_DB_NAME": "n"}


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        (PARTS, "postgresql://u:p@db:5432/n"),
        ({**PARTS, "ANALYTICS_DB_PORT": "6543"}, "postgresql://u:p@db:6543/n"),
        ({**PARTS, "ANALYTICS_DB_PASS": "p@:/?#%ü "}, "postgresql://u:p%40%3A%2F%3F%23%25%C3%BC%20@db:5432/n"),
        ({**PARTS, "ANALYTICS_DB_USER": "", "ANALYTICS_DB_PASS": ""}, "postgresql://db:5432/n"),
        ({**PARTS, "ANALYTICS_DB_HOST": "::1"}, "postgresql://u:p@[::1]:5432/n"),
        ({**PARTS, "ANALYTICS_DB_HOST": "/cloudsql/a:b:c"}, "postgresql://u:p@/n?host=/cloudsql/a%3Ab%3Ac&port=5432"),
        ({**PARTS, "ANALYTICS_DATABASE_URL": "postgres://x@y/z"}, "postgresql://x@y/z"),
        (
            {"ANALYTICS_DATABASE_URL": "postgresql+asyncpg://x@y/z?sslmode=require"},
            "postgresql://x@y/z?sslmode=require",
        ),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:p@/db?host=/f"}, "postgresql://u:p@/db?host=/f"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:p%40%2F%%3F@y/z"}, "postgresql://u:p%40%2F%25%3F@y/z"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:p@:/?#[%@y:1/z"}, "postgresql://u:p%40%3A%2F%3F%23%5B%25@y:1/z"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:p@[::1]:2/z"}, "postgresql://u:p@[::1]:2/z"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:p@y,x:2/z"}, "postgresql://u:p@y,x:2/z"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://y/z?user=a@b"}, "postgresql://y/z?user=a@b"),
    ],
)
def test_the_database_address(variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rule for services and migrations; the URL wins over its parts."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load(DatabaseSettings).database_url == url


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "ANALYTICS_DATABASE_URL"),
        ({"ANALYTICS_DATABASE_URL": "mysql://x"}, "ANALYTICS_DATABASE_URL"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:hunter2@h:port/n"}, "ANALYTICS_DATABASE_URL"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:hunter2@[h/n"}, "ANALYTICS_DATABASE_URL"),
        ({"ANALYTICS_DATABASE_URL": "postgresql://u:hunter2@h/n?sslmode=hunter2"}, "ANALYTICS_DATABASE_URL"),
        (
            {"ANALYTICS_DATABASE_URL": "postgresql://u@h/n?sslmode=verify-full&sslrootcert=/hunter2"},
            "ANALYTICS_DATABASE_URL",
        ),
        ({**PARTS, "KAFKA_BOOTSTRAP_SERVERS": "kafka:port"}, "KAFKA_BOOTSTRAP_SERVERS"),
        ({**PARTS, "KAFKA_BOOTSTRAP_SERVERS": ","}, "KAFKA_BOOTSTRAP_SERVERS"),
        ({**PARTS, "KAFKA_TOPIC": "a topic"}, "KAFKA_TOPIC"),
        ({**PARTS, "KAFKA_TOPIC": "."}, "KAFKA_TOPIC"),
        ({**PARTS, "KAFKA_SUPPRESSIONS_TOPIC": ".."}, "KAFKA_SUPPRESSIONS_TOPIC"),
        ({**PARTS, "KAFKA_TOPIC": "x", "KAFKA_SUPPRESSIONS_TOPIC": "x"}, "KAFKA_SUPPRESSIONS_TOPIC"),
        ({**PARTS, "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2"}, "KAFKA_TOPIC_MIN_INSYNC_REPLICAS"),
        ({**PARTS, "KAFKA_SSL_CA_FILE": "/hunter2"}, "KAFKA_SSL_CA_FILE"),
        ({**PARTS, "ANALYTICS_DB_PORT": "port"}, "ANALYTICS_DB_PORT"),
        ({**PARTS, "CONSUMER_BATCH_ROWS": "0"}, "CONSUMER_BATCH_ROWS"),
        ({**PARTS, "LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        ({**PARTS, "ID_HASH_KEY": "hunter2"}, "ID_HASH_KEY"),
        ({**PARTS, "ID_HASH_KEYS_PREVIOUS": "x" * 32 + ",hunter2"}, "ID_HASH_KEYS_PREVIOUS"),
        ({**PARTS, "KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_MECHANISM"),
    ],
)
def test_a_bad_value_is_named_and_not_repeated(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message ends in logs; the value may be a secret."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongSetting) as caught:
        load(ConsumerSettings)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_environment_wins_over_the_file_and_empty_is_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's environment must be able to override a file that was copied into it."""
    (tmp_path / ".env").write_text("KAFKA_TOPIC=from.file\nKAFKA_CONSUMER_GROUP=from.file\n")
    monkeypatch.setenv("KAFKA_TOPIC", "from.environment")
    monkeypatch.setenv("KAFKA_CONSUMER_GROUP", "")
    monkeypatch.setenv("LOG_LEVEL", "")
    settings = load(KafkaSettings)
    assert (settings.kafka_topic, settings.log_level) == ("from.environment", "INFO")


def test_what_is_logged_at_start_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are printed once, for the operator; passwords and keys are not."""
    for name in ("ANALYTICS_DATABASE_URL", "KAFKA_SASL_PASSWORD", "ID_HASH_KEY", "ID_HASH_KEYS_PREVIOUS"):
        monkeypatch.setenv(name, "postgresql://hunter2-hunter2-hunter2-hunter2")
    shown = described(load(ConsumerSettings))
    assert "hunter2" not in str(shown)
    assert shown["KAFKA_TOPIC"] == "telemetry.events"
