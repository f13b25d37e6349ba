"""ENGINE -> the native engine's library, which both processes use where it was built."""

import importlib
from types import ModuleType
from typing import Literal

from shared.errors import WrongSetting

EngineName = Literal["native", "python"]
EngineSetting = Literal["auto", "native", "python"]


def native_library(setting: EngineSetting = "auto") -> ModuleType | None:
    """The library; None where it was not built or is ruled out, so that the reference serves.

    Raises:
        WrongSetting: the native engine is asked for, and was not built.
    """
    if setting == "python":
        return None
    try:
        return importlib.import_module("telemetry_native")
    except ImportError:
        if setting == "native":
            raise WrongSetting(
                "ENGINE: native was not built. Install cargo and run make setup, or set ENGINE=auto."
            ) from None
        return None


def is_native_built() -> bool:
    return native_library() is not None
