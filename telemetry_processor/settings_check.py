"""Settings -> what is wrong with them, part by part."""

import difflib
import os
from pathlib import Path

from consumer.settings import ConsumerSettings
from receiver.settings import ReceiverSettings
from shared.errors import WrongSetting
from shared.output import write_out
from shared.settings import ProcessSettings, load
from viewer.settings import ViewerSettings

PARTS: dict[str, type[ProcessSettings]] = {
    "receiver": ReceiverSettings,
    "consumer": ConsumerSettings,
    "viewer": ViewerSettings,
}
NAMES = {name.upper() for settings in PARTS.values() for name in settings.model_fields}
LIKENESS_MIN = 0.9  # KAFKA_TOPIC_PARTITION is one letter short; ANALYTICS_READER_PASS is another program's


def checked(parts: list[str]) -> int:
    """Write a line for each part; 2 when one would not start.

    Raises:
        WrongSetting: a part has no such name.
    """
    if unknown := set(parts) - PARTS.keys():
        raise WrongSetting(f"no part is called {', '.join(sorted(unknown))}: {', '.join(PARTS)} are")
    code = 0
    for part in parts or PARTS:
        try:
            load(PARTS[part])
            write_out(f"{part}: ok")
        except WrongSetting as error:
            write_out(f"{part}: {error}")
            code = 2
    for given, meant in misspelt().items():
        write_out(f"{given}: nothing reads it; {meant} is a setting")
    return code


def misspelt() -> dict[str, str]:
    """Variables of the environment and of .env that look like a setting and are none, with that setting."""
    env = Path(".env")
    lines = env.read_text().splitlines() if env.is_file() else []
    given = {line.partition("=")[0].strip() for line in lines if "=" in line and not line.startswith("#")} | set(
        os.environ
    )
    close = {name: difflib.get_close_matches(name, NAMES, n=1, cutoff=LIKENESS_MIN) for name in sorted(given - NAMES)}
    return {name: found[0] for name, found in close.items() if found}
