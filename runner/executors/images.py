"""Which image a stage gets in a place that fetches images from a registry, or has them from somewhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.executors import Attempt

OWN = "microstages"  # before the names of images that were built here
CODE = 12  # hex digits of the code identity in a tag


def tag(code: str, flavor: str) -> str:
    """The tag that `make images` gives the image of this code of a stage."""
    return f"{code.removeprefix('sha256:')[:CODE]}-{flavor}"


def name_of(attempt: Attempt, options: Mapping[str, Any]) -> str:
    """The image's name: what the pipeline or the target says, else that of this code, in the target's registry."""
    own = (options.get("images") or {}).get(attempt.uses) or attempt.image
    if own:
        return str(own)
    flavor = options.get("flavor") or ("cuda" if attempt.resources.gpus else "cpu")
    return f"{str(options.get('registry') or OWN).rstrip('/')}/{attempt.uses}:{tag(attempt.code, flavor)}"
