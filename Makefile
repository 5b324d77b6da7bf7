# Each target sets itself up on a fresh machine: Python 3.11 or newer, git and make are all that is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
CATALOGUE ?=
# Another version than that of constraints.txt: make test TRANSFORMERS=5.24.0
TRANSFORMERS ?=
ifneq ($(TRANSFORMERS),)
VENV := .venv-$(TRANSFORMERS)
BIN := $(VENV)/bin
CONSTRAINTS := $(VENV)-constraints.txt
else
CONSTRAINTS := constraints.txt
endif

# No command here reaches for the Hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test matrix lint format bench clean

# The commands are shown as they run: they are what one would type for one's own catalogue.
demo: $(VENV)/.starter
	@test -f $(OUT)/base/config.json || (set -x; $(BIN)/fusionmatch starter $(OUT)/base)
ifeq ($(CATALOGUE),)
	@test -f $(OUT)/shop/products.csv || (set -x; $(BIN)/fusionmatch sample-shop $(OUT)/shop)
endif
	@set -x; $(BIN)/fusionmatch check $(or $(CATALOGUE),$(OUT)/shop/products.csv)
	@rm -rf $(OUT)/adapter
	@set -x; $(BIN)/fusionmatch adapt --model_name_or_path $(OUT)/base --output_dir $(OUT)/adapter \
	  --catalogue $(or $(CATALOGUE),$(OUT)/shop/products.csv)

test: $(VENV)/.test lint
	$(BIN)/python tests/hf_common/fetch.py
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The tests under the lowest and the highest transformers that they are known to pass with (fusionmatch/__init__.py).
matrix:
	@for version in $$(sed -n 's/^TESTED_TRANSFORMERS = //p' fusionmatch/__init__.py | tr -d '(",)'); do \
	  $(MAKE) test TRANSFORMERS=$$version || exit 1; done

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/speed.py

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FusionMatch needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)-constraints.txt: constraints.txt
	sed 's/^transformers==.*/transformers==$(TRANSFORMERS)/' constraints.txt > $@

# torch goes first: with its tested version there, nothing else pulls another build of it.
$(VENV)/.torch: $(VENV)/bin/pip $(CONSTRAINTS)
	$(BIN)/pip install --quiet --progress-bar off -c $(CONSTRAINTS) torch
	@touch $@

$(VENV)/.starter: $(VENV)/.torch setup.py
	$(BIN)/pip install --quiet --progress-bar off -c $(CONSTRAINTS) -e '.[starter,report]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch setup.py
	$(BIN)/pip install --quiet --progress-bar off -c $(CONSTRAINTS) -e '.[test]'
	@touch $@ $(VENV)/.starter

clean:
	rm -rf .venv .venv-* $(OUT) build dist *.egg-info
