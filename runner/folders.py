"""Where the stages of this repository lie. Nothing is imported here: a shell asks it at every key."""

from __future__ import annotations

import os
from pathlib import Path

INTERFACE = "interface.json"


def stages_folder() -> Path:
    """The folder of the stages: beside the runner, or $MICROSTAGES_STAGES."""
    return Path(os.environ.get("MICROSTAGES_STAGES") or Path(__file__).parent.parent / "stages")
