"""The distribution's one package: an installed wheel holds receiver, consumer, shared, viewer and alembic in it.

They import each other by their own names, as in a clone. `FOLDER` holds them, and `first_on_the_path` puts it before
everything else that is installed, so that another package called `shared` is in nobody's way.
"""

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
FOLDER = _HERE if (_HERE / "receiver").is_dir() else _HERE.parent  # an installed wheel, or a clone


def first_on_the_path() -> None:
    """For this process and for those that it starts."""
    folder = str(FOLDER)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
