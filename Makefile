# Every target makes .venv first, once; a change of pyproject.toml or constraints.txt makes it anew.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Without byte code each process of a sweep or a test would compile torch anew, for 20 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slurm check bench

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "clplat needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet uv || echo "uv is not to be had; pip installs instead"
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python \
			--constraint constraints.txt --editable '.[dev]'; \
		else $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; fi
	@touch $@

demo: $(READY)
	$(BIN)/clplat experiment=demo
	$(BIN)/clplat-report runs/demo

# Triton's kernels run in its interpreter, which a process is either for or not for.
test: $(READY)
	$(BIN)/pytest -n auto
	TRITON_INTERPRET=1 $(BIN)/pytest -n auto tests/ops

# As root: apt-get install slurmctld slurmd slurm-client munge
test-slurm: $(READY)
	$(BIN)/pytest tests/slurm/check_slurm.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m clplat.bench
