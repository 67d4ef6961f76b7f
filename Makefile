# `make demo` and `make test` are all there is to know: each makes .venv first.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench bench-speed bench-accuracy bench-perplexity bench-peers bench-serving clean

demo: .venv/demo
	.venv/bin/python -m examples.demo

test: lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist worksteal

lint: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

# torch first and by its exact version: a range would take a CUDA build of several gigabytes.
.venv/torch: constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing torch ..."
	$(PIP) torch==2.13.0
	@touch $@

.venv/demo: .venv/torch pyproject.toml examples/demo/requirements.txt
	@echo "Installing hf-tsv and what the demo needs ..."
	$(PIP) --editable . --requirement examples/demo/requirements.txt
	@touch $@

.venv/dev: .venv/torch pyproject.toml
	@echo "Installing hf-tsv and what its tests need ..."
	$(PIP) --editable ".[dev]"
	@touch $@

bench: bench-speed bench-accuracy bench-perplexity bench-peers bench-serving

bench-speed: .venv/dev
	.venv/bin/python -m benchmarks.speed

bench-accuracy: .venv/demo .venv/dev
	.venv/bin/python -m benchmarks.accuracy

bench-perplexity: .venv/demo .venv/dev
	.venv/bin/python -m benchmarks.perplexity

bench-peers: .venv/demo .venv/dev
	.venv/bin/python -m benchmarks.peer_accuracy

bench-serving: .venv/demo .venv/dev
	.venv/bin/python -m benchmarks.serving

clean:
	rm -rf .venv .demo build dist
