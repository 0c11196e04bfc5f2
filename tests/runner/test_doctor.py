"""`runner doctor` says what is there, what is missing and what to do, and changes nothing."""

from __future__ import annotations

NOWHERE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def found(done):
    return {f["what"]: f for f in done.json}


def test_without_a_pipeline_it_looks_at_the_machine(project):
    done = project.run("doctor", "--json", environment=NOWHERE)
    assert done.code == 0, done.err
    states = found(done)
    assert states["processes"]["state"] == "ok" and "all 6 stages" in states["processes"]["text"]
    assert states["Docker"]["state"] == "note" and "no Docker engine answers" in states["Docker"]["text"]
    assert "GB free" in states["store"]["text"]
    assert not (project.folder / ".runner").exists(), "it changes nothing"


def test_what_a_pipeline_asks_for_and_is_missing_is_an_error(project, tmp_path):
    without = tmp_path / "without"
    without.mkdir()
    (without / "sitecustomize.py").write_text("import sys\nsys.modules['s3fs'] = None\n")
    project.pipeline(
        "target: docker\nstore: s3://bucket/x\nstages:\n  a: {uses: merge, inputs: {base_model: m, adapter: a}}\n"
    )
    done = project.run("doctor", environment={**NOWHERE, "PYTHONPATH": str(without)})
    assert done.code == 2
    lines = done.out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("!! Docker"))
    assert "no Docker engine answers" in lines[at] and "unset the variable DOCKER_HOST" in lines[at + 1]
    at = next(n for n, line in enumerate(lines) if line.startswith("!! store"))
    assert "s3://bucket/x: no driver is installed" in lines[at] and "pip install s3fs" in lines[at + 1]


def test_stages_that_are_not_installed_are_named(project):
    project.stage("mine", "true", command=["no-such-program"])
    done = project.run("doctor", "--json", environment={**NOWHERE, "MICROSTAGES_STAGES": str(project.folder)})
    assert done.code == 2
    assert found(done)["processes"]["text"] == "not installed: mine"


def test_credentials_are_named_and_never_shown(project):
    done = project.run("doctor", environment={**NOWHERE, "HF_TOKEN": "a-very-secret-token"})
    assert "Hugging Face (HF_TOKEN)" in done.out
    assert "a-very-secret-token" not in done.out + done.err


def test_with_an_engine_it_counts_the_images_of_this_code(project, engine):
    done = project.run("doctor", "--json", "--target", "docker", environment={"DOCKER_HOST": engine.address})
    assert done.code == 0, done.out
    states = found(done)
    assert states["Docker"]["state"] == "ok" and engine.address in states["Docker"]["text"]
    assert states["images"]["text"] == "6 of 6 stages (cpu)"


def test_images_of_other_code_are_told(project, engine):
    project.stage("merge", "true")  # a stage of the same name with other code
    options = {"DOCKER_HOST": engine.address, "MICROSTAGES_STAGES": str(project.folder)}
    done = project.run("doctor", "--json", "--target", "docker", environment=options)
    assert done.code == 2
    assert "was made from other code of merge than lies here" in found(done)["images"]["text"]
    assert found(done)["images"]["fix"] == "make images"


def test_a_cluster_and_a_workspace_that_are_asked_for_are_looked_for(project):
    project.pipeline("""\
        store: abfs://x/store
        targets:
          far: {type: kubernetes, namespace: ml}
          aml: {type: azureml, compute: gpus}
        stages:
          a: {uses: merge, inputs: {base_model: "abfs://x/m", adapter: "abfs://x/a"}, target: far}
          b: {uses: merge, inputs: {base_model: "abfs://x/m", adapter: "abfs://x/a"}, target: aml}
        """)
    done = project.run("doctor", "--json", environment={**NOWHERE, "KUBECONFIG": str(project.folder / "none")})
    assert done.code == 2
    states = found(done)
    assert states["far (kubernetes)"]["state"] == "missing" and states["far (kubernetes)"]["fix"]
    assert "it is not known which Azure ML workspace is meant" in states["aml (azureml)"]["text"]
    (project.folder / "pipeline.yaml").unlink()
    done = project.run("doctor", "--json", "--target", "azureml", environment=NOWHERE)
    assert done.code == 2 and "no subscription_id" in found(done)["azureml"]["text"]
