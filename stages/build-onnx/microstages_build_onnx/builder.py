"""The child that imports torch: runs the model builder, and later the source model for the comparison.

Both share one process because the imports cost more than the work on a small model. The builder puts generic module
names on `sys.path` and prints a lot, which is why this is never imported by the stage itself.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

from microstages.errors import UserError, from_os_error

from microstages_build_onnx.child import progress, serve
from microstages_build_onnx.reference import compare

LINKS = "https://github.com/microsoft/onnxruntime-genai"
# What the builder says, what is meant, what to do.
KNOWN = (
    ("cannot reshape array of size", "the weights do not fit into blocks of this size", "choose another --block-size"),
    ("RoPE style is not currently supported", "the builder does not know this kind of rotary embedding",
     "this model cannot be built with this version of ONNX Runtime GenAI"),
    ("is not currently supported", "the builder does not know this model",
     "this model cannot be built with this version of ONNX Runtime GenAI"),
    ("ignore_mismatched_sizes", "the weights have other shapes than config.json names", "get or make the model again"),
    ("can't allocate memory", "there is not enough memory", "use a machine with more, or a smaller model"),
    ("No space left on device", "the disk is full", "free some space, or choose a place with more, and run again"),
)  # fmt: skip


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build into `job["output"]`. Raises UserError with the builder's own last word."""
    began = time.monotonic()
    logging.disable(logging.INFO)
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    _count_layers(job["layers"])
    view, output, cache = job["view"], job["output"], str(Path(job["scratch"]) / "cache")
    target = (job["precision"], job["execution_provider"], cache)
    try:
        options = parse_extra_options(None, view, output, *target, job["options"])
        create_model(None, view, output, *target, **options)
    except MemoryError:
        raise UserError(
            "there is not enough memory", where=job["where"], fix="use a machine with more, or a smaller model"
        ) from None
    except Exception as error:
        raise _explained(error, job["where"]) from error
    finally:
        builtins.print = _print
    return {"build_seconds": round(time.monotonic() - began, 3)}


def _explained(error: Exception, where: str) -> UserError:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or from_os_error(error)):
        return from_os_error(error, where) or UserError(text, where=where)
    for pattern, what, fix in KNOWN:
        if pattern in text:
            return UserError(f"{what} ({text[:200]})", where=where, fix=fix)
    return UserError(
        f"the model builder failed: {text[:500]}", where=where,
        fix=f"look whether this is known at {LINKS}, or try other options",
    )  # fmt: skip


_print = builtins.print


def _count_layers(layers: int) -> None:
    """The builder prints `Reading layer 3`: make progress of it."""

    def listen(*values: Any, **options: Any) -> None:
        text = str(values[0]) if values else ""
        if text.startswith("Reading layer "):
            progress("build", int(text.rpartition(" ")[2]), layers)
        elif text.startswith("Saving ONNX model"):
            progress("save", layers, layers)
        _print(*values, **options)

    builtins.print = listen


if __name__ == "__main__":
    os.umask(0o022)
    serve({"build": build, "compare": compare})
