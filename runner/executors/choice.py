"""Which executor a stage gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from microstages.errors import UserError

from runner.executors import Executor
from runner.pipeline import Pipeline, Stage
from runner.targets import Where

PROCESS, DOCKER = Where("process", "process"), Where("docker", "docker")


def make(where: Where, folder: Path | None = None) -> Executor:
    """The executor of a place, for a pipeline that lies in `folder`."""
    if where.kind == "docker":
        from runner.executors.docker import DockerExecutor

        return DockerExecutor(where.options)
    if where.kind == "kubernetes":
        from runner.executors.kubernetes.executor import KubernetesExecutor

        return KubernetesExecutor(where.options)
    if where.kind == "azureml":
        from runner.executors.azureml.executor import AzureMLExecutor

        return AzureMLExecutor(where.options, folder)
    from runner.executors.process import ProcessExecutor

    return ProcessExecutor()


def settle(pipeline: Pipeline, code: Mapping[str, str], note: Callable[[str], None]) -> dict[str, Where]:
    """Where the stages with `target: auto` run; what was chosen, and what would be needed for Docker, is told.

    In Docker, where an engine answers and has an image of the stage's code. A plain command without an image is
    always a process; a stage that is an image is always a container.
    """
    stages = [s for s in pipeline.stages.values() if s.where.kind == "auto"]
    out = {s.name: DOCKER if s.found.image else PROCESS for s in stages}
    open_ = [s for s in stages if s.interface.manifest == "stage" and not s.found.image]
    if not open_:
        return out
    from runner.executors.engine import asked, connect

    try:
        client = connect()
        with asked():
            version, gpus = client.version()["Version"], "nvidia" in (client.info().get("Runtimes") or {})
        missing = [(s, why) for s in open_ if (why := _lacks(client, s, code[s.name], gpus))]
    except UserError as error:
        note(f"as local processes: {error.what} ({error.fix.partition(', or')[0]})")
        return out
    out |= {s.name: DOCKER for s in open_ if s not in [m for m, _ in missing]}
    if len(missing) < len(open_):
        note(f"in containers of the Docker engine {version} (--target process: in this environment)")
    if missing:
        names = ", ".join(s.name for s, _ in missing)
        note(f"{names} as local processes: {missing[0][1].what} ({missing[0][1].fix.partition(', or')[0]})")
    return out


def _lacks(client: object, stage: Stage, code: str, gpus: bool) -> UserError | None:
    """Why the engine cannot run a stage."""
    from runner.executors.engine import image_of

    try:
        image_of(client, stage.interface.name, code, "cuda" if stage.resources.gpus else "cpu")  # type: ignore[arg-type]
    except UserError as error:
        return error
    if stage.resources.gpus and not gpus:
        return UserError("the engine cannot give GPUs to containers", fix="install the NVIDIA Container Toolkit")
    return None
