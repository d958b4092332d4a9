# make demo   environment, install, and the main job on real handwritten digits: an HTML report
# make test   environment, install, and all tests
# make bench  every claim measured: tables and plots in benchmarks/results
# make lint   ruff, mypy, clang-format
# make wheel-check   the ops of one wheel under two torch versions
# make clean  forget the environment and all builds

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
OLDER_TORCH ?= 2.13.0
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

BUILD_TOOLS := "scikit-build-core>=0.10" "pybind11>=2.12" ninja "cmake>=3.22"
NATIVE := $(shell git ls-files 'csrc/*' CMakeLists.txt 2>/dev/null)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STRICT := CXXFLAGS="$(CXXFLAGS) -Werror"

.PHONY: demo test bench lint format wheel wheel-check clean

demo: $(VENV)/.installed
	$(BIN)/salun-fast demo

# A process per core; files stay whole. Threads that wait must not spin: there are more than cores.
test: $(VENV)/.installed
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(JOBS) --dist loadfile

bench: $(VENV)/.installed
	-$(PIP) opacus # a peer; where it cannot be had its rows say so
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision
	@case "$(SALUN_FAST_CUDA)" in [oO][nN]) command -v nvcc >/dev/null || $(MAKE) nvcc ;; esac
	$(PIP) $(BUILD_TOOLS)
	touch $@

# The CUDA compiler of torch's own CUDA version, for machines that have none.
CUDA_PACKAGES := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-cccl nvidia-nvvm
.PHONY: nvcc
nvcc:
	cuda=$$($(BIN)/python -c "import torch; print(torch.version.cuda)") && \
	  $(PIP) $(foreach package,$(CUDA_PACKAGES),"$(package)==$$cuda.*")

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(STRICT) $(PIP) --no-build-isolation --editable ".[dev]"
	touch $@

# One wheel, built against the newer torch, tested as installed under both: the second environment
# borrows the first one's packages, but not its editable install.
wheel: $(VENV)/.installed $(NATIVE)
	rm -rf dist
	$(STRICT) $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

wheel-check: wheel
	PYTHON=$(PYTHON) OLDER_TORCH=$(OLDER_TORCH) tests/wheel_check.sh

clean:
	rm -rf $(VENV) build dist
