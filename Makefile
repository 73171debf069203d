# The words people and CI use. Needs Python 3.11 or newer, make and git; the rest is installed
# into .venv on first use. Choose the interpreter with PYTHON=python3.12.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= data
PYTEST_ARGS ?=
# Threads that stay awake while they wait starve the processes under test on a small machine; those
# that sleep at once make every small operation slow.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help venv demo serve test test-quick contract-all compatibility faults soak check format bench bench-quick bench-load \
	performance test-gpu images clean

help:
	@echo "make demo        start everything here and let two tenants train at once (KEEP=1: leave it running)"
	@echo "make serve       run cyclora up on the folder $(DATA)"
	@echo "make test        every test that needs no GPU"
	@echo "make test-quick  the same without the slow ones"
	@echo "make test-gpu    what needs a CUDA device, and the kernels on it instead of interpreted"
	@echo "make contract-all  the contract tests: the newest SDK, older ones, and tinker-cookbook's own loops"
	@echo "make compatibility  write docs/compatibility.md from a run of the contract tests"
	@echo "make faults      kill everything at every moment, and print the table of what survived"
	@echo "make soak        five minutes of tenants that come and go, and what grows (SOAK_S=60: one minute)"
	@echo "make check       formatting, lint, types, import contracts, spelling"
	@echo "make bench       all benchmarks, in full"
	@echo "make bench-quick  the same, small"
	@echo "make bench-load  a hundred tenants at one server and one worker"
	@echo "make performance  all benchmarks, written into docs/performance.md and README"
	@echo "make images      the container images, for compose and Kubernetes"

venv: $(STAMP)

# Torch goes first: everything that depends on it must find exactly this version in place.
# A .venv that is a symbolic link belongs to somebody else and is used as it is.
$(STAMP): pyproject.toml constraints.txt
	@if [ -L $(VENV) ]; then \
		echo "$(VENV) is a link: used as it is"; \
	else \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
			|| { echo "$(PYTHON) is older than 3.11; name another with PYTHON=..."; exit 1; }; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip install --upgrade pip \
			&& $(BIN)/python -m pip install -c constraints.txt torch==2.13.0 \
			&& $(BIN)/python -m pip install -c constraints.txt -e ".[all,dev]"; \
	fi
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m cyclora_client.demo

serve: $(STAMP)
	@$(BIN)/cyclora up --data $(DATA)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

test-quick: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu and not slow" $(PYTEST_ARGS)

test-gpu: $(STAMP)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/gpu tests/workers/cuda $(PYTEST_ARGS)

contract-all: $(STAMP)
	$(BIN)/python -m pytest tests/contract tests/cookbook $(PYTEST_ARGS)

compatibility: $(STAMP)
	CYCLORA_WRITE_COMPATIBILITY=1 \
		$(BIN)/python -m pytest tests/contract --ignore tests/contract/compatibility \
		--ignore tests/contract/old_sdks -p no:randomly $(PYTEST_ARGS)

faults: $(STAMP)
	$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

soak: $(STAMP)
	SOAK_S=$${SOAK_S:-300} SOAK_PLOT=.cache/soak.png \
		$(BIN)/python -m pytest -s tests/faults/test_soak.py $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	git ls-files -z --cached --others --exclude-standard | xargs -0 $(BIN)/codespell

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

bench-load: $(STAMP)
	$(BIN)/python benchmarks/run.py --only load

bench-quick: $(STAMP)
	$(BIN)/python benchmarks/run.py --quick

performance: $(STAMP)
	$(BIN)/python benchmarks/run.py --write

images:
	docker compose -f deploy/compose.yaml --profile cpu --profile gpu0 build

# Keeps .venv and the data folder: neither can be made again in a moment.
clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .cache
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
