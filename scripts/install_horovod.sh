#!/usr/bin/env bash
# Builds Horovod 0.28.1, the last release, for the TensorFlow and Keras 3 of an environment, with MPI
# and nothing else. For allreduce="horovod" and for the comparison in benchmarks/throughput.
#
#   scripts/install_horovod.sh [PYTHON]
#
# PYTHON is the environment's (default: .venv/bin/python if there is one, else python3). Needs a C++
# compiler, cmake 3.13 or newer, and mpicxx of the MPI that mpi4py uses, beside PYTHON or on the
# PATH. Takes some minutes.
set -euo pipefail

version=0.28.1
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${1:-}"
if [[ -z "$python" ]]; then
    python=python3
    [[ -x "$here/.venv/bin/python" ]] && python="$here/.venv/bin/python"
fi
bin="$(dirname "$("$python" -c 'import sys; print(sys.executable)')")"
export PATH="$bin:$PATH"

for program in g++ cmake mpicxx; do
    command -v "$program" >/dev/null || {
        echo "Horovod is built with $program. Received: none on the PATH. Install it first." >&2
        exit 1
    }
done
"$python" -c 'import tensorflow, mpi4py' || {
    echo "Horovod is built for a TensorFlow that is there. Received: an environment without" \
        "tensorflow or mpi4py ($python). Install hyparflow with its extra cpu into it first." >&2
    exit 1
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
# What its setup.py and its launcher import; setuptools below 81 has pkg_resources.
"$python" -m pip install -q --disable-pip-version-check \
    "setuptools<81" wheel packaging cloudpickle psutil pyyaml
"$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: \
    --no-build-isolation "horovod==$version"
tar xzf "horovod-$version.tar.gz"
cd "horovod-$version"

# TensorFlow's headers are C++17; Horovod's operations for XLA use headers that are gone.
sed -i 's/^set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 17)/' CMakeLists.txt
sed -i '/xla_mpi_ops.cc/d' horovod/tensorflow/CMakeLists.txt

export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1
export HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
# Its third parties ask for a cmake that new ones no longer stand in for.
export CMAKE_POLICY_VERSION_MINIMUM=3.5
export MAKEFLAGS="-j$(nproc)"
"$python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation .

cd "$here"
"$python" - <<'END'
import horovod.tensorflow as hvd

assert hvd.mpi_built(), "Horovod was built without MPI."
print("Horovod with MPI is installed.")
END
