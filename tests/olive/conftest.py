"""Imports configs of Olive and reads what they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from olive.samples import Config

from runner.document import PipelineError
from runner.olive.convert import Made, convert
from runner.olive.write import pipeline_text
from runner.pipeline import Pipeline, read


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """`make(config)` imports a config that lies in a folder of its own."""

    def run(config: Config | str, generation: str | None = None) -> Made:
        file = tmp_path / "olive-config.json"
        file.write_text(config if isinstance(config, str) else json.dumps(config, indent=1))
        return convert(file, tmp_path / "pipeline.yaml", generation)

    return run


@pytest.fixture
def wrong(make: Callable[..., Made]) -> Callable[..., str]:
    """`wrong(config)`: what is said of it; empty where nothing is wrong."""

    def run(config: Config | str) -> str:
        try:
            make(config)
        except PipelineError as error:
            return str(error)
        return ""

    return run


@pytest.fixture
def pipeline(make: Callable[..., Made], tmp_path: Path) -> Callable[..., Pipeline]:
    """`pipeline(config)`: the imported pipeline, written and read."""

    def run(config: Config | str, generation: str | None = None) -> Pipeline:
        file = tmp_path / "pipeline.yaml"
        file.write_text(pipeline_text(make(config, generation)))
        return read(file, commands=False)

    return run
