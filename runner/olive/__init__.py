"""Reads configs of Microsoft Olive (`olive run --config …`) and writes the pipeline that does the same.

Both generations of its schema are known: A, of v0.5 and v0.6 (spring 2024), and B, since v0.7. No key is dropped in
silence: each is translated, or listed with what becomes of it and why; one that Olive never had is a mistake.
"""

from __future__ import annotations

from pathlib import Path

from microstages.errors import UserError

from runner.olive.convert import Made, convert
from runner.olive.write import pipeline_text


def import_config(config: Path, output: Path, generation: str | None = None, force: bool = False) -> Made:
    """Write the pipeline of a config. Raises PipelineError with all mistakes of the config, UserError where the file is
    there already and not to be replaced."""
    made = convert(config, output, generation)
    if output.exists() and not force:
        raise UserError("this file is there already", where=output, fix="give another one with -o, or --force")
    if not output.parent.is_dir():
        raise UserError("there is no such folder", where=output.parent, fix="make it, or give another file with -o")
    output.write_text(pipeline_text(made), encoding="utf-8")
    return made
