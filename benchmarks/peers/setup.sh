#!/usr/bin/env bash
# Builds the environment of the peers (PyTorch CPU, breaching) in the folder given. Needs CPython 3.11; never a dependency of selgrad.
set -euo pipefail
python3.11 -m venv "$1"
"$1/bin/pip" install -q torch==2.13.0
"$1/bin/pip" install -q --no-deps breaching torchvision
# Without torch among the requirements, so that nothing replaces the CPU build.
"$1/bin/pip" install -q hydra-core pandas scipy transformers datasets pillow
"$1/bin/pip" install -q --no-deps lpips
