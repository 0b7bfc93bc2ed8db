# Nothing here needs an activated virtual environment. ARGS goes to the command: make test ARGS="-k gate".

.DEFAULT_GOAL := help
.PHONY: help setup demo line line-check test check lint format bench bench-peers bench-check backbones docs containers clean
BIN := .venv/bin
TESTS ?= tests

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make .venv with everything in it, and fetch Kafka for development
	@bash deploy/setup.sh

demo: setup ## run a line end to end on drawn parts
	@$(BIN)/goldline demo $(ARGS)

test: setup ## run the tests, all of them in up to four processes, or what ARGS says in one
	@$(if $(ARGS),,OMP_NUM_THREADS=1) $(BIN)/python -m pytest $(or $(ARGS),-n auto --maxprocesses 4 --dist loadfile)

line: setup ## a whole line until Ctrl-C: Kafka, Redis, Prometheus, workers, gate, cameras, refits
	@$(BIN)/python -m deploy.local.line $(ARGS)

line-check: setup ## minutes: such a line, its alerts, dashboards and counts; then a worker is killed
	@$(BIN)/python -m deploy.local.check $(ARGS)

check: lint ## what CI runs: format, lint, types, tests (TESTS= leaves the tests out)
ifneq ($(strip $(TESTS)),)
	@$(BIN)/python -m pytest $(TESTS) $(ARGS)
endif

lint: setup ## format, lint and types, changing nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup ## format, and mend what can be mended by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## measure this machine
	@$(BIN)/goldline bench $(ARGS)

bench-peers: setup ## measure beside anomalib, in an environment of its own (several GB)
	@[ -x .venv-peers/bin/python ] || python3 -m venv .venv-peers
	@.venv-peers/bin/python -c 'import anomalib, openvino' 2>/dev/null || \
	  .venv-peers/bin/pip install --quiet 'anomalib>=2.7,<2.8' 'openvino>=2025.4,<2027'
	@$(BIN)/goldline bench score --peers $(ARGS)

bench-check: setup ## minutes: whether code is slower than that of the checked-in figures, in turns with it
	@GOMP_SPINCOUNT=5000 $(BIN)/python -m tests.benchmarks.check $(ARGS)

backbones: setup ## the table of backbones, on the pictures that GOLDLINE_DATA names
	@$(BIN)/python -m tests.benchmarks.backbones $(ARGS)

docs: setup ## build the documentation into .goldline/site; ARGS=serve shows it while you write
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --quiet --strict)

containers: ## a whole line in containers, with Docker's compose; ARGS=-d leaves the terminal
	@python3 deploy/compose/secrets.py
	@docker compose -f deploy/compose.yaml up --build $(ARGS)

clean: ## remove what the tools left behind; .venv and the broker's data stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache build dist
	@find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
