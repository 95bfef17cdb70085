#!/usr/bin/env bash
# Everything that is worth measuring on an accelerator, in ten minutes and without a network; see benchmarks/gpu.py.
# Usage: benchmarks/gpu.sh [--tiny] [--minutes N] [--out FILE]     PYTHON=... names an interpreter that has JAX for the device.
set -euo pipefail
cd "$(dirname "$0")/.."
# The package is read where it lies: an image's own JAX is kept, and nothing is installed.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
