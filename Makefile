# The commands a person types. Each makes .venv ready first (scripts/prepare.sh), and does so once.
SHELL := /bin/bash
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1
python := .venv/bin/python
PYTEST ?= $(python) -m pytest
DEVICE ?= cpu

.PHONY: demo test test-all bench lint docs asan wheel clean

demo:           ## install, look, verify, time, and train a small model in FP8 beside bf16
	@bash scripts/prepare.sh demo
	.venv/bin/glm5-ops doctor
	.venv/bin/glm5-ops verify --quick --device $(DEVICE)
	.venv/bin/glm5-ops bench --quick --device $(DEVICE)
	.venv/bin/glm5-ops demo --device $(DEVICE) --out .demo

test:           ## everything but what is marked slow
	@bash scripts/prepare.sh test
	$(PYTEST) -m "not slow"

test-all:       ## what `make test` leaves out: the slow tests, and the CPU tests under ASan and UBSan
	@bash scripts/prepare.sh test
	@$(MAKE) --no-print-directory asan
	$(PYTEST) -m slow

bench:          ## every op beside its baselines
	@bash scripts/prepare.sh test
	.venv/bin/glm5-ops bench --device $(DEVICE)

lint:
	@bash scripts/prepare.sh test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@if command -v clang-format >/dev/null; then \
	  find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run --Werror; \
	else echo "clang-format is not installed (apt install clang-format): the C++ files were not looked at"; fi

docs:           ## one Markdown page per op, made from docstrings and contracts
	@bash scripts/prepare.sh test
	@mkdir -p build/docs
	@for op in $$(ls csrc/ops); do \
	  { echo "# $$op"; echo '```'; .venv/bin/glm5-ops describe $$op; echo '```'; } > build/docs/$$op.md; done
	@ls build/docs/*.md

# The interpreter is not instrumented, so the sanitizers' libraries are loaded before it, and libstdc++ with them: ASan must
# find the functions that throw. Leaks are not looked for: Python and torch keep what they allocated until the end.
asan_stage := build/asan/stage
asan_libraries = $(shell $${CXX:-c++} -print-file-name=libasan.so):$(shell $${CXX:-c++} -print-file-name=libstdc++.so)
asan:           ## the CPU tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@bash scripts/prepare.sh test
	.venv/bin/cmake -S . -B build/asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(python) -DGLM5_OPS_CUDA=OFF -DGLM5_OPS_SANITIZE=ON
	.venv/bin/cmake --build build/asan
	rm -rf $(asan_stage) && mkdir -p $(asan_stage)
	cp -r python/glm5_ops $(asan_stage)/ && cp -r bench $(asan_stage)/glm5_ops/bench
	.venv/bin/cmake --install build/asan --prefix $(CURDIR)/$(asan_stage)
	PYTHONPATH=$(asan_stage) LD_PRELOAD=$(asan_libraries) \
	  ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(PYTEST) -q -m "not slow" -k "not interpreted and not compile" tests/ops tests/test_contract.py \
	  tests/model/test_linear.py

wheel:          ## the distributable wheels into dist/: for the CPU, and with CUDA kernels
	@bash scripts/prepare.sh check
	@test -x $(python) || bash scripts/prepare.sh demo
	rm -rf dist && mkdir -p dist/cpu dist/cuda
	GLM5_OPS_CUDA=OFF $(python) -m pip wheel --no-deps -w dist/cpu . --config-settings=build-dir=build/wheel-cpu
	GLM5_OPS_CUDA=wheels $(python) -m pip wheel --no-deps -w dist/cuda . --config-settings=build-dir=build/wheel-cuda
	@ls -l dist/*

clean:
	rm -rf build dist .venv .demo .pytest_cache .ruff_cache
