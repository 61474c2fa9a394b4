# make demo | test | lint | notebooks | experiments | smoke | clean; each first makes .venv if it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
JOBS ?= 2

.PHONY: demo test lint notebooks experiments smoke clean

# Simulated cells, or those of a file: make demo DATA=file.h5ad KEY=column
demo: $(READY)
	@$(BIN)/python -m pvae_pyro.demo $(if $(DATA),--data '$(DATA)') $(if $(KEY),--key '$(KEY)')

# One thread a process: the processes are already as many as the cores.
test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# Every notebook runs in a copy: the committed outputs stay as they are.
notebooks: $(READY)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp notebooks/*.ipynb "$$folder" && \
	  $(BIN)/jupyter-execute --timeout=900 "$$folder"/*.ipynb && echo "All notebooks ran."

experiments:
	@for readme in experiments/*/README.md; do [ -f "$$readme" ] || continue; \
	  printf '%s  %s\n' "$${readme%/README.md}" "$$(head -n 1 "$$readme")"; done

# One short arm of every experiment, its numbers not kept; some read ../shared/data.
smoke: $(READY)
	@printf '%s\n' $(patsubst experiments/%/__main__.py,%,$(wildcard experiments/*/__main__.py)) | OMP_NUM_THREADS=1 xargs -P $(JOBS) -I NAME \
	  sh -c 'out=$$($(BIN)/python -W ignore -m experiments.NAME --smoke 2>&1) && echo "experiments.NAME: whole" || { echo "$$out"; exit 255; }'

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
