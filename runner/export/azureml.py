"""A pipeline as a pipeline job of Azure ML, for `az ml job create --file pipeline.yaml`.

One command job for each stage, in its image, its inputs and outputs wired as Azure ML's folders. Each output lies in a
folder of its own inside Azure ML's, since a stage makes its output appear at once, by a rename. What Azure ML mounts is
an input of the pipeline (files of this machine, which it uploads, and datastores); any other address a stage reads
itself. There are no leases, no reuse by content and no retries: those are the runner's.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages.errors import UserError
from microstages.storage import local_path

from runner import stages
from runner.executors import Attempt
from runner.executors.azureml import body
from runner.executors.images import name_of
from runner.pipeline import External, Stage

if TYPE_CHECKING:
    from runner.work import Work

SCHEMA = "https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json"
FILE = "pipeline.yaml"
INNER = "artifact"  # the folder of an artifact inside Azure ML's
_DATA = re.compile(r"azureml://(subscriptions/.*/)?datastores/")


def write(work: Work, folder: Path) -> list[Path]:
    """Write the pipeline job into a folder, which is made; the files that were written."""
    import yaml

    file = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)

    class Dumper(yaml.SafeDumper):
        """Several lines stay several lines."""

    def told(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, told)
    text = yaml.dump(job(work, folder), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    file.write_text(f"# Made by `runner export azureml`: az ml job create --file {FILE}\n{text}")
    return [file]


def job(work: Work, folder: Path) -> dict[str, Any]:
    """The pipeline job as data. Paths in it start at `folder`."""
    inputs: dict[str, dict[str, str]] = {}
    jobs = {}
    for stage in work.pipeline.stages.values():
        given = {}
        for name, value in stage.inputs.items():
            if not isinstance(value, External):
                given[name] = f"${{{{parent.jobs.{_name(value.stage)}.outputs.{_name(value.output)}}}}}"
            elif thing := _thing(value.uri, folder):
                known = next((k for k, v in inputs.items() if v == thing), None)
                key = known or _fresh(name, inputs)
                inputs[key] = thing
                given[name] = f"${{{{parent.inputs.{key}}}}}"
        jobs[_name(stage.name)] = _command(stage, given, work.facts.code[stage.name])
    options = next((s.where.options for s in work.pipeline.stages.values() if s.where.kind == "azureml"), {})
    compute = options.get("compute")
    out: dict[str, Any] = {
        "$schema": SCHEMA, "type": "pipeline", "display_name": work.pipeline.name,
        "experiment_name": body.experiment(options, work.pipeline.name),
        "settings": {"default_compute": f"azureml:{compute}" if compute else "serverless"},
    }  # fmt: skip
    return out | ({"inputs": inputs} if inputs else {}) | {"jobs": jobs}


def _command(stage: Stage, given: Mapping[str, str], code: str) -> dict[str, Any]:
    """The command job of a stage; `given`: what its inputs are bound to."""
    interface = stage.interface
    if interface.manifest == "runner":
        fix = "let it write its own manifest (docs/contract.md), or leave its stage out"
        raise UserError(f"{interface.name} is a plain command: nothing in Azure ML makes its artifact", fix=fix)
    options = dict(stage.where.options) if stage.where.kind == "azureml" else {}
    places: dict[str, str] = {}
    for name, value in stage.inputs.items():
        if not isinstance(value, External):
            places[name] = f"${{{{inputs.{_name(name)}}}}}/{INNER}"
        elif name in given:
            places[name] = f"${{{{inputs.{_name(name)}}}}}"
        else:
            places[name] = value.uri
    outputs = {name: f"${{{{outputs.{_name(name)}}}}}/{INNER}" for name in interface.outputs}
    bound = [f"{interface.inputs[n].flag}={places[n]}" for n in given]
    bound += [f"{interface.outputs[n].flag}={uri}" for n, uri in outputs.items()]
    words = stages.flags(interface, {n: uri for n, uri in places.items() if n not in given}, stage.params, {})
    attempt = Attempt(
        "", stage.name, interface.command, Path(), Path(), Path(), resources=stage.resources, uses=interface.name,
        code=code, image=stage.found.pulled, arguments=tuple(words),
    )  # fmt: skip
    resources: dict[str, Any] = {"instance_count": stage.resources.nodes}
    if options.get("instance_type"):
        resources["instance_type"] = options["instance_type"]
    if stage.resources.shm:
        resources["shm_size"] = f"{math.ceil(stage.resources.shm / (1 << 20))}m"
    out: dict[str, Any] = {
        "type": "command", "display_name": stage.name,
        "command": "\n".join([*body.before(attempt), " ".join([body.program(attempt, options), *bound])]),
        "environment": {"image": name_of(attempt, options)}, "resources": resources,
    }  # fmt: skip
    if given:
        out["inputs"] = {
            _name(n): v if "jobs." not in v else {"type": "uri_folder", "path": v} for n, v in given.items()
        }
    out["outputs"] = {_name(n): {"type": "uri_folder", "mode": "rw_mount"} for n in interface.outputs}
    if options.get("compute"):
        out["compute"] = f"azureml:{options['compute']}"
    if options.get("environment"):
        out["environment_variables"] = dict(options["environment"])
    if stage.resources.nodes > 1:
        out["distribution"] = {"type": "pytorch", "process_count_per_instance": 1}
    if stage.timeout:
        out["limits"] = {"timeout": math.ceil(stage.timeout)}
    if identity := options.get("identity"):
        kind = {"managed": "managed_identity", "user": "user_identity"}.get(identity, "managed_identity")
        out["identity"] = {"type": kind} | ({"client_id": identity} if identity not in ("managed", "user") else {})
    if options.get("tier"):
        out["queue_settings"] = {"job_tier": options["tier"]}
    return out


def _thing(uri: str, folder: Path) -> dict[str, str] | None:
    """An input of the pipeline that Azure ML mounts; None for an address that a stage reads itself."""
    path = local_path(uri)
    if path is None:
        return {"type": "uri_folder", "path": uri, "mode": "ro_mount"} if _DATA.match(uri) else None
    kind = "uri_file" if path.is_file() else "uri_folder"
    return {"type": kind, "path": os.path.relpath(path.resolve(), folder.resolve()), "mode": "ro_mount"}


def _name(text: str) -> str:
    """A name as Azure ML allows it: letters, digits and _."""
    return re.sub(r"\W", "_", text)


def _fresh(name: str, taken: Mapping[str, object]) -> str:
    name, number = _name(name), 1
    while (key := name if number == 1 else f"{name}_{number}") in taken:
        number += 1
    return key
