"""The consumer's settings."""

from typing import Annotated

from pydantic import Field

from shared.database_settings import DatabaseSettings
from shared.engine import EngineSetting
from shared.settings import IdSettings, KafkaSettings, PortOrOff, ReceiverPlace


class ConsumerSettings(DatabaseSettings, KafkaSettings, IdSettings):
    """Everything that `python -m consumer` reads."""

    engine: EngineSetting = Field(
        "auto", description="`native` or `python` forces an engine; `auto`: native where it was built"
    )
    consumer_batch_rows: int = Field(10_000, ge=1, le=100_000, description="most records in one transaction")
    consumer_linger_ms: int = Field(250, ge=0, le=60_000, description="longest wait for a batch to fill")
    consumer_writers: int = Field(1, ge=1, le=64, description="connections that write disjoint partitions side by side")
    retention_days: int = Field(0, ge=0, le=36_500, description="age at which rows are deleted; 0: never")
    dead_letter_max_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of dead letters in the window that opens the breaker; 1: never"
    )
    dead_letter_window: int = Field(1000, ge=1, le=1_000_000, description="records that the breaker looks back on")
    consumer_metrics_port: PortOrOff = Field(9465, description="port of /livez, /readyz and /metrics; 0: off")


class DoctorSettings(ConsumerSettings, ReceiverPlace):
    """Doctor looks at the receiver's metrics as well."""
