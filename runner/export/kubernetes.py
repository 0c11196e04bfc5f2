"""A pipeline as manifests of a cluster: a Job for each stage, to be applied one after the other, and the same as an
Argo Workflow.

Nothing is looked up and nothing is committed: each output has one address,

    <store>/exported/<pipeline>/<id>/<stage>/<output>

where the id is a digest of all stages' code, parameters and inputs from outside. The stages after it read it there. So
the same pipeline is always exported to the same files, and another one to other places. There are no leases and no
reuse: those are the runner's. Values of secrets are never written: they are references to a Secret by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages.errors import UserError
from microstages.storage import join, local_path

from runner import stages
from runner.credentials import passed_on
from runner.executors import Attempt
from runner.executors.images import name_of
from runner.executors.kubernetes import manifests
from runner.executors.kubernetes.manifests import Given, Object
from runner.executors.secrets import Secret
from runner.pipeline import External, Stage

if TYPE_CHECKING:
    from runner.work import Work

WORKFLOW = "workflow.yaml"
OF_POD = ("nodeSelector", "tolerations", "priorityClassName", "serviceAccountName", "securityContext", "volumes")


def write(work: Work, folder: Path) -> list[Path]:
    """Write the manifests into a folder, which is made; the files that were written. Raises UserError for what a
    cluster does not reach."""
    import yaml

    made = jobs(work)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{place:02d}-{stage}.yaml" for place, stage in enumerate(made, 1)]
    files = {}
    for file, stage in zip(names, made, strict=True):
        job = made[stage][-1]["metadata"]["name"]
        files[file] = (f"kubectl apply -f {file} && kubectl wait --for=condition=complete --timeout=-1s job/{job}",
                       made[stage])  # fmt: skip
    files[WORKFLOW] = (f"argo submit {WORKFLOW}", [workflow(work, made)])
    secret = f"# Its secrets are keys of the Secret {kept(work)}, which is to be there.\n"
    for file, (how, objects) in files.items():
        text = yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True, width=100)
        note = secret if f"name: {kept(work)}\n" in text or f"secretName: {kept(work)}\n" in text else ""
        (folder / file).write_text(f"# Made by `runner export kubernetes`: {how}\n{note}{text}")
    return [folder / file for file in files]


def kept(work: Work) -> str:
    """The Secret that holds what the stages need of the caller's credentials."""
    return manifests.dns_name(f"{manifests.OWN}-{work.pipeline.name}")


def identity(work: Work) -> str:
    """The id of what is exported, 12 hex digits."""
    outside = {f"{stage} {name}": digest for (stage, name), digest in work.facts.outside.items()}
    wired = {s.name: [s.uses, sorted(s.params.items()), {k: str(v) for k, v in s.inputs.items() if _wired(v)}]
             for s in work.pipeline.stages.values()}  # fmt: skip
    text = json.dumps([dict(work.facts.code), outside, wired], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def jobs(work: Work) -> dict[str, list[Object]]:
    """The manifests of each stage, in order: a Service where it has several nodes, then the Job."""
    out = {}
    for stage in work.pipeline.stages.values():
        attempt = _attempt(work, stage)
        options = _options(work, stage)
        given = _given(work, attempt, options)
        name = manifests.dns_name(f"{manifests.OWN}-{stage.name}-{attempt.name}", manifests.LONGEST)
        job = manifests.job(attempt, options, given, name)
        job["metadata"] |= {"namespace": options["namespace"]} if options.get("namespace") else {}
        service = manifests.service(name, job["metadata"]["labels"])
        service["metadata"] |= {"namespace": options["namespace"]} if options.get("namespace") else {}
        out[stage.name] = [*([service] if stage.resources.nodes > 1 else []), job]
    return out


def workflow(work: Work, made: Mapping[str, list[Object]]) -> Object:
    """The Argo Workflow of these Jobs: the same pods, in the order of what they take from each other."""
    tasks, templates = [], []
    for stage in work.pipeline.stages.values():
        name = manifests.dns_name(stage.name)
        task: Object = {"name": name, "template": name}
        if stage.upstream:
            task["depends"] = " && ".join(manifests.dns_name(up) for up in stage.upstream)
        tasks.append(task)
        templates.append(_template(name, stage, made[stage.name]))
    meta: Object = {"generateName": f"{manifests.dns_name(work.pipeline.name, 40)}-"}
    named = [job[-1]["metadata"].get("namespace") for job in made.values()]
    if named[0]:
        meta["namespace"] = named[0]
    spec = {"entrypoint": "main", "templates": [{"name": "main", "dag": {"tasks": tasks}}, *templates]}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": meta, "spec": spec}


def _template(name: str, stage: Stage, objects: list[Object]) -> Object:
    """A template of one stage: its container; of several nodes the Job itself."""
    import yaml

    spec = objects[-1]["spec"]
    if stage.resources.nodes > 1:
        text = yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True)
        resource = {"action": "apply", "manifest": _braces(text), "failureCondition": "status.failed > 0",
                    "successCondition": f"status.succeeded == {stage.resources.nodes}"}  # fmt: skip
        return {"name": name, "resource": resource}
    pod = spec["template"]["spec"]
    container = {**pod["containers"][0], "name": "main"}
    container["args"] = [_braces(word) for word in container["args"]]
    out: Object = {"name": name, "metadata": spec["template"]["metadata"], "container": container}
    out |= {key: pod[key] for key in OF_POD if key in pod}
    codes = sorted(c for c in stage.retry.on if isinstance(c, int))
    if codes and stage.retry.attempts > 1:
        expression = f"asInt(lastRetry.exitCode) in {codes}"
        out["retryStrategy"] = {"limit": stage.retry.attempts - 1, "retryPolicy": "Always", "expression": expression}
    if "activeDeadlineSeconds" in spec:
        out["activeDeadlineSeconds"] = spec["activeDeadlineSeconds"]
    return out


def _braces(text: str) -> str:
    """A text in which Argo sees nothing to fill in."""
    return text.replace("{{", "{{='{'}}{{='{'}}")


def _wired(value: object) -> bool:
    return not isinstance(value, External)


def _options(work: Work, stage: Stage) -> dict[str, Any]:
    """The options of the stage's target; of the pipeline's one target of a cluster where it has none of its own."""
    if stage.where.kind == "kubernetes":
        return dict(stage.where.options)
    others = (s.where.options for s in work.pipeline.stages.values() if s.where.kind == "kubernetes")
    return dict(next(others, {}))


def _place(work: Work, stage: str, output: str) -> str:
    return join(work.pipeline.store, "exported", work.pipeline.name, identity(work), stage, output)


def _attempt(work: Work, stage: Stage) -> Attempt:
    """The stage as it is to be started. Raises UserError where it cannot be."""
    if stage.select is not None:
        fix = "export a pipeline that uses what was selected, or run it with the runner"
        raise UserError("`select` needs the runner: it compares what was measured", where=stage.place, fix=fix)
    interface, options = stage.interface, _options(work, stage)
    if interface.manifest == "runner":
        fix = "run it there with `runner up`, or let it write its own manifest (docs/contract.md)"
        what = f"{interface.name} is a plain command: a cluster cannot run it alone"
        raise UserError(what, where=stage.place, fix=fix)
    inputs = {
        name: value.uri if isinstance(value, External) else _place(work, value.stage, value.output)
        for name, value in stage.inputs.items()
    }
    outputs = {name: _place(work, stage.name, name) for name in interface.outputs}
    shared = [str(v["path"]) for v in options.get("volumes") or []]
    for name, uri in inputs.items():
        path = local_path(uri)
        if path is not None and not any(path.is_relative_to(folder) for folder in shared):
            fix = f"runner push {path} {join(work.pipeline.store, 'inputs', path.name)}, and name that address instead"
            raise UserError(f"the input {name} of {stage.name} lies on this machine", where=path, fix=fix)
    if (store := local_path(work.pipeline.store)) is not None and not any(store.is_relative_to(f) for f in shared):
        fix = "give one with --set store=abfs://… (or s3://…, gs://…), or `volumes` of the target"
        raise UserError("a cluster does not reach this store", where=store, fix=fix)
    words = stages.flags(interface, inputs, stage.params, outputs)
    state = _place(work, stage.name, "state") if interface.state else ""
    if state and interface.state:
        words.append(f"{interface.state.flag}={state}")
    remote = tuple(uri for uri in (*inputs.values(), *outputs.values()) if local_path(uri) is None)
    return Attempt(
        identity(work), stage.name, (), work.pipeline.folder, Path(os.devnull), Path(os.devnull), {},
        arguments=tuple(words), resources=stage.resources, uses=interface.name, code=work.facts.code[stage.name],
        image=stage.found.pulled, retry=stage.retry, timeout=stage.timeout, grace=stage.grace, remote=remote,
    )  # fmt: skip


def _given(work: Work, attempt: Attempt, options: Mapping[str, Any]) -> Given:
    """What it is given, secrets by their names alone."""
    wanted = options.get("secrets") or []
    names = {w: Secret(w, "") for w in wanted if isinstance(w, str)}
    stored = manifests.stored(wanted)
    found, plain = passed_on(attempt.remote)
    for one in found:
        if one.name not in {n for n, _, _ in stored}:
            names.setdefault(one.name, Secret(one.name, "", one.file))
    return Given(name_of(attempt, options), plain, list(names.values()), stored, kept(work))
