# make demo | test | lint | docs | bench | bench-others | tutorials | clean
# Each target makes what it needs in .venv; a second call installs nothing. Choose an interpreter with PYTHON=python3.12.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

# Idle OpenMP threads that spin steal the cores from everyone else.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?=
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
TUTORIALS ?=

# .venv/.made holds the checkout's path: scripts and the editable install name it, so a moved checkout needs a new one.
# .venv/.installing is left behind by an install that was killed half-way: nothing in that environment can be trusted.
VENV_USABLE := $(shell [ "$$(cat .venv/.made 2>/dev/null)" = "$$PWD" ] && [ ! -e .venv/.installing ] \
	&& .venv/bin/python -c "" 2>/dev/null && echo yes)

.PHONY: help
help:
	@echo "make demo       a double well by a stochastic flow, 40 Gaussians by a diffusion sampler (results in demo_output/)"
	@echo "make test       tests, doctests and the README's examples"
	@echo "make lint       ruff check, ruff format --check, mypy --strict"
	@echo "make docs       the documentation, in docs/_build/html"
	@echo "make bench      the cost of sampling beside that of the bare energy calls"
	@echo "make bench-others  samplers of other libraries beside ours, in bench_output/ (25 minutes; goes on where it stopped)"
	@echo "make tutorials  run the tutorial notebooks again, in place"
	@echo "make clean      remove everything that make made"

.PHONY: demo
demo: .venv/.installed-run
	.venv/bin/pyro-boltzmann sample double_well --sampler snf --num-samples 100000 --seed 0 --out demo_output
	@echo
	.venv/bin/pyro-boltzmann sample gmm40 --sampler diffusion --num-samples 10000 --seed 0 --minutes 1 --out demo_output/gmm40
	@echo; for run in demo_output demo_output/gmm40; do \
	  printf '%s: ' $$run; sed -n 's/.*"verdict": "\(.*\)".*/\1/p' $$run/report.json; done

.PHONY: test
test: .venv/.installed-test
	.venv/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

.PHONY: lint
lint: .venv/.installed-test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy --strict pyro_boltzmann

.PHONY: docs
docs: .venv/.installed-docs
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: bench
bench: .venv/.installed-run
	.venv/bin/python -m pyro_boltzmann.experiments.bench

.PHONY: bench-others
bench-others: .venv/.installed-bench
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	  .venv/bin/python -m pyro_boltzmann.experiments.bench_others --out bench_output

.PHONY: tutorials
tutorials: .venv/.installed-notebooks .venv/.installed-test
	env -u MPLBACKEND .venv/bin/python tutorials/run.py $(TUTORIALS)
	.venv/bin/python -m ruff format tutorials

.PHONY: check-tutorials
check-tutorials: .venv/.installed-notebooks
	env -u MPLBACKEND .venv/bin/python tutorials/run.py --check $(TUTORIALS)

.PHONY: clean
clean:
	rm -rf .venv .venv-arviz1 demo_output bench_output dist build docs/_build docs/jupyter_execute docs/tutorials/*.ipynb
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up -------------------------------------------------------------------------------------------------------

.PHONY: install-test install-docs
install-test: .venv/.installed-test
install-docs: .venv/.installed-docs

# install EXTRAS: the marker goes away when pip ends by itself, well or badly, and stays when the install is killed.
define install
	@echo "installing pyro-boltzmann$(1) into .venv (a few minutes the first time)"
	@touch .venv/.installing
	@.venv/bin/python -m pip install --quiet -e ".$(1)" -c constraints.txt; code=$$?; rm -f .venv/.installing; exit $$code
	@touch $@
endef

.venv/.installed-run: .venv/.made pyproject.toml constraints.txt
	$(call install,)
.venv/.installed-test: .venv/.made pyproject.toml constraints.txt
	$(call install,[test])
.venv/.installed-docs: .venv/.made pyproject.toml constraints.txt
	$(call install,[docs])
.venv/.installed-bench: .venv/.made pyproject.toml constraints.txt
	$(call install,[bench])
.venv/.installed-notebooks: .venv/.made pyproject.toml constraints.txt
	$(call install,[notebooks])

ifneq ($(VENV_USABLE),yes)
.PHONY: .venv/.made
endif
.venv/.made:
	@python=; old=; bare=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14 python); do \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  if ! "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	    old="$$old $$candidate ($$version)"; continue; fi; \
	  if ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then bare="$$bare $$candidate ($$version)"; continue; fi; \
	  python=$$candidate; break; \
	done; \
	if [ -z "$$python" ]; then \
	  if [ -n "$$bare" ]; then \
	    echo "error: no usable Python >= 3.11: these lack the venv or ensurepip module:$$bare." >&2; \
	    echo "Install it (Debian, Ubuntu: apt-get install python3-venv) or name another: make PYTHON=/path/to/python" >&2; \
	  else \
	    echo "error: no Python >= 3.11 was found ($${old:+too old:}$${old:-nothing by the usual names})." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python" >&2; \
	  fi; exit 1; \
	fi; \
	echo "making .venv with $$python ($$version)"; \
	rm -rf .venv && "$$python" -m venv .venv && printf '%s\n' "$$PWD" > .venv/.made
