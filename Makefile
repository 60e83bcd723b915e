# Everything is installed into this folder (.venv, .tools); only downloads that are worth keeping go to the user's cache.
.PHONY: setup temporal run test coverage test-pythons lint types bench format histories workspace-image clean

PYTHON ?= python3
PACKAGES := messages store activities workflows workers api cli agent
NO_PYTHON := Python 3.11 to 3.13 is needed, with its venv module: install one so that it is on PATH
# Prints the first Python that fits, of those that uv would find as well; nothing where there is none.
FIND_PYTHON = IFS=:; for folder in $$PATH; do for name in python3 python3.13 python3.12 python3.11 python; do \
  set -- "$$@" "$$folder/$$name"; done; done; \
  for python in "$$(command -v $(PYTHON))" "$$@"; do \
  fits=$$("$$python" -c 'import sys; print((3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null </dev/null) || continue; \
  [ "$$fits" != True ] || { printf '%s\n' "$$python"; break; }; done
UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
export PROMPT ?= git log -3 --format='%h %s' && ls && date > made-by-an-agent.txt

setup: .venv/.installed
	@.venv/bin/python -m compileall -q $(PACKAGES)  # what changed, also where PYTHONDONTWRITEBYTECODE forbids it to Python

.venv/.installed: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --quiet --locked || \
	  { $(UV) python find --quiet --no-python-downloads >/dev/null 2>&1 || echo "$(NO_PYTHON)" >&2; exit 1; }
	@touch $@

.tools/bin/uv:
	@python=$$($(FIND_PYTHON)); [ -n "$$python" ] || \
	  { echo "$(NO_PYTHON), or install uv, which gets one itself" >&2; exit 1; }; \
	  "$$python" -c 'import ensurepip' 2>/dev/null || python=$(PYTHON); "$$python" -m venv .tools
	.tools/bin/pip install --quiet uv

temporal: setup
	.venv/bin/python -c 'import asyncio; from workers.temporal_binary import obtain_temporal; asyncio.run(obtain_temporal(None, print))'

run: setup  ## a task on this repository: a shell script as the agent, in a git worktree
	@printf 'PROMPT: %s\n' "$$PROMPT"
	.venv/bin/taskrunner run --repo . "$$PROMPT"

test: temporal
	.venv/bin/python -m pytest $(ARGS)

coverage: temporal  ## the tests once more, slower: which lines and branches none of them reaches
	.venv/bin/python -m pytest --cov --cov-report=term $(ARGS)

PYTHONS ?= 3.12 3.13
SAME_ON_EVERY_PYTHON := tests/unit tests/workflows tests/e2e/test_whole_task.py

test-pythons: $(PYTHONS:%=test-python-%)  ## what may differ with the Python it runs on, on the newer ones that are supported

test-python-%: temporal
	UV_PROJECT_ENVIRONMENT=.venv-$* $(UV) sync --quiet --locked --python $*
	.venv-$*/bin/python -m pytest -q $(or $(ARGS),$(SAME_ON_EVERY_PYTHON))

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

types: setup
	.venv/bin/basedpyright

bench: temporal  ## measure against the targets; BENCH='--only cli_help --n 50' for a part
	.venv/bin/taskrunner bench $(BENCH)

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

histories: setup  ## record workflow histories and the registry of this release, which every later one replays and upgrades
	.venv/bin/python -m tests.histories.record
	.venv/bin/python -m tests.releases.record

IMAGE ?= taskrunner-workspace

workspace-image: setup  ## the image of a container workspace, with the workspace agent in it
	.venv/bin/python -c 'from pathlib import Path; from agent.build import build_zipapp; build_zipapp(Path("deploy/workspace/agent.pyz"))'
	docker build --tag $(IMAGE) deploy/workspace

clean:
	rm -rf .venv .venv-3.* .tools .pytest_cache .ruff_cache .coverage*
