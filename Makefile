# Two commands do everything on a fresh Debian or Ubuntu: make demo, make test.
#
#   PYTHON=python3.12   another interpreter (3.11 or newer)
#   PIP_ARGS=...        more options for pip, e.g. an index whose torch is built for the CPU alone
#   VENV=path           another place for the environment

PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
VENV ?= .venv
PIP_ARGS ?=
RUN ?= runs/demo-summarization
QUICK_SEED := runs/paper-check/synthetic/seed-1
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads that spin for long while they wait are several times slower on cores that others use too.
export GOMP_SPINCOUNT ?= 10000

.PHONY: help demo test benchmark benchmark-check paper-check reliability reliability-check setup clean

help:
	@echo "make demo   set up, train a summarizer with the gamma loss, evaluate it"
	@echo "make test   set up, then lint, types and tests"
	@echo "make benchmark        the head and a whole step beside their peers; half an hour"
	@echo "make benchmark-check  the same small, with loose bounds; a minute"
	@echo "make reliability        kill runs, fill disks, spoil files, and compare; 15 min"
	@echo "make reliability-check  a few of each; two minutes"
	@echo "make paper-check        every objective in tiny runs of the paper's tasks; three minutes"
	@echo "make setup  the environment in $(VENV) alone"
	@echo "make clean  remove the environment and the demo's run"

demo: $(STAMP)
	rm -rf $(RUN)
	$(BIN)/tvd-gen train --config demo/summarization.yaml --output $(RUN)
	$(BIN)/tvd-gen eval $(RUN)

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict tvd_gen
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2

benchmark: $(STAMP)
	$(BIN)/python scripts/benchmark/run.py

benchmark-check: $(STAMP)
	$(BIN)/python scripts/benchmark/run.py --check --steps 5

reliability: $(STAMP)
	$(BIN)/python scripts/reliability/run.py

paper-check: $(STAMP)
	rm -rf runs/paper-check
	$(BIN)/python scripts/paper/toy.py --output runs/paper-check/toy
	$(BIN)/python scripts/paper/synthetic.py --quick --jobs 2 --seeds 1 --output runs/paper-check/synthetic
	$(BIN)/python scripts/paper/small_tasks.py --quick --jobs 2 --output runs/paper-check/small_tasks
	$(BIN)/python scripts/paper/perturbation.py $(addprefix $(QUICK_SEED)/,students/ce students/tailr-0.1 oracle) --texts $(QUICK_SEED)/data/test.jsonl --columns source=source target=target --limit 50 --edits 2 --output runs/paper-check/perturbation/seed-1
	$(BIN)/python scripts/paper/perturbation_seeds.py runs/paper-check/perturbation/seed-1 --edits 1 --base oracle
	$(BIN)/python scripts/paper/compare.py $(addprefix runs/paper-check/small_tasks/summarization/,ce-seed1 tailr-0.01-seed1 gce-0.1-seed1) --metrics rouge1 rougeL nll accuracy ece
	$(BIN)/python scripts/paper/check.py runs/paper-check

reliability-check: $(STAMP)
	$(BIN)/python scripts/reliability/run.py --quick

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (by transformers 5.23); try: sudo apt-get install python3.11 python3.11-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is no Python 3.11 or newer, which transformers 5.23 needs; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; try: sudo apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(RUN)
