# Two commands matter, `make demo` and `make test`; each sets up what it needs. `make` alone lists the others.
#
#   make test ARGS="-k forward -x"   extra arguments for pytest, the demo or the benchmark
#   make test VENV=                  in the environment you are in: nothing is installed, no network is needed

# The virtual environment, made once; empty for the current environment.
VENV ?= .venv
# The Python it is made with, 3.10 or newer; with an empty VENV, the one that runs everything.
PYTHON ?= python3
# The tested torch. Its CPU build is enough: TORCH may also be the path of a wheel, and pip's own settings apply.
TORCH ?= torch==2.13.0
ARGS ?=

python := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
pip_install := $(python) -m pip install --disable-pip-version-check
clang_format := $(if $(VENV),$(VENV)/bin/)clang-format
cpp_files = $(shell find csrc tests tools examples benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# $(call installed,build test): the stamps of what a target needs in the virtual environment.
installed = $(if $(VENV),$(patsubst %,$(VENV)/.installed-%,$(1)))

# Tests with the most memory accesses that take no more than minutes under a sanitizer.
sanitized_tests := -q tests/robustness/test_errors.py tests/operators/test_layouts.py tests/operators/test_arithmetic.py -k "not many_taps"
raced_tests := -q tests/operators/test_forward.py tests/operators/test_backward.py -k "plain or lopsided or deep or wide"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo study docs test bench build cuda asan tsan fuzz soak packages wheel sdist try lock lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: build $(call installed,demo)  ## blur a photograph, recover the map from it, write examples/tilt_shift.png
	PYTHONPATH=.:$$PYTHONPATH $(python) examples/tilt_shift.py $(ARGS)

study: build $(call installed,demo study)  ## train the networks of docs/study.md, on a GPU or for hours; ARGS="--workers 16"
	PYTHONPATH=.:$$PYTHONPATH $(python) examples/three_sizes.py --seeds 5 --results examples/three_sizes $(ARGS)
	PYTHONPATH=.:$$PYTHONPATH $(python) examples/perspective_digits.py --seeds 5 --results examples/perspective_digits \
	  --output examples/perspective_digits.png $(ARGS)
	PYTHONPATH=.:$$PYTHONPATH $(python) examples/microscopy.py --seeds 5 --results examples/microscopy $(ARGS)
	PYTHONPATH=.:$$PYTHONPATH $(python) examples/brain.py --seeds 5 --results examples/brain $(ARGS)

docs: build $(call installed,demo docs)  ## build the documentation into build/docs, running its examples
	$(python) -m sphinx -b html -W --keep-going $(ARGS) docs build/docs

test: build $(call installed,test demo onnx study)  ## run the tests
	$(python) -m pytest $(ARGS)

bench: build $(call installed,demo)  ## compare with F.unfold and others, on the GPU if there is one
	PYTHONPATH=.:$$PYTHONPATH $(python) -m benchmarks $(ARGS)

build: $(call installed,torch build package)  ## compile what changed
	$(python) setup.py --quiet build_ext --inplace

cuda: $(call installed,torch build)  ## compile the CUDA sources for several architectures, where there is an nvcc
	$(python) tools/compile_cuda.py $(ARGS)

asan: $(call installed,torch build test)  ## run tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(python) tools/sanitize.py address -m pytest $(or $(ARGS),$(sanitized_tests))

tsan: $(call installed,torch build test)  ## run tests under ThreadSanitizer, which watches the parallel loops
	$(python) tools/sanitize.py thread -m pytest $(or $(ARGS),$(raced_tests))

fuzz: $(call installed,torch build test)  ## call the operators with random arguments, under sanitizers, guided by coverage
	$(python) tools/sanitize.py address tools/fuzz.py $(or $(ARGS),--seconds 3600)

soak: build  ## random calls for minutes, to check that memory does not grow
	PYTHONPATH=.:$$PYTHONPATH $(python) tools/soak.py $(ARGS)

packages: build $(call installed,test cmake)  ## build, install and use the CMake package, and the wheel of the source distribution
	DDU_PACKAGES=1 $(python) -m pytest $(or $(ARGS),-q tests/package/test_cmake.py tests/package/test_package.py)

# A free-threaded Python has no limited API to audit.
wheel: build $(call installed,wheel)  ## dist/*.whl, for the torch that is installed and every CPython from 3.10 on, audited
	$(python) tools/distribute.py wheel
	wheel=$$(ls -t dist/*.whl | head -1); case $$wheel in *t-linux*) ;; *) $(python) -m abi3audit --strict $$wheel;; esac

sdist: build  ## dist/*.tar.gz, the source distribution
	$(python) tools/distribute.py sdist

try: wheel  ## install the wheel in a new environment, and run tests there
	$(python) tools/distribute.py try --torch "$(TORCH)" -- $(or $(ARGS),-q)

lock: $(call installed,lint)  ## after a change of requirements/: write the hashes of the packages
	$(pip_install) --quiet uv
	for list in requirements/*.txt; do $(python) -m uv pip compile --quiet --universal --python-version 3.10 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --constraint requirements/build.txt $$(case $$list in */study.txt) echo --no-deps;; esac) $$list --output-file requirements/locked/$${list##*/} || exit; done

lint: $(call installed,torch lint)  ## check formatting, style and types of both languages
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(clang_format) --dry-run --Werror $(cpp_files)
	$(python) -m codespell_lib
	$(python) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(python) -m check_jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(python) -m check_jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(call installed,lint)  ## format both languages, fix what ruff can
	$(python) -m ruff check --fix --exit-zero .
	$(python) -m ruff format .
	$(clang_format) -i $(cpp_files)

clean:  ## remove everything that was built, except the virtual environment
	rm -rf build dist *.egg-info ddu_ops/*.so ddu_ops/_built_for.json docs/auto_tutorials docs/sg_execution_times.rst .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

ifneq ($(VENV),)
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-torch: Makefile | $(VENV)/.made
	$(pip_install) $(TORCH)
	touch $@

# The editable install, so that the environment has the package wherever it is used from.
$(VENV)/.installed-package: pyproject.toml | $(call installed,torch build)
	$(pip_install) --no-build-isolation --no-deps --editable .
	touch $@

# Packages, for files in them: see requirements/study.txt.
$(VENV)/.installed-study: requirements/locked/study.txt | $(VENV)/.made
	$(pip_install) --quiet --no-deps --require-hashes --requirement $<
	touch $@

$(VENV)/.installed-%: requirements/locked/%.txt | $(VENV)/.made
	$(pip_install) --quiet --require-hashes --requirement $<
	touch $@
endif
