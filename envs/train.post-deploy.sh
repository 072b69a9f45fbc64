#!/usr/bin/env bash
# Installs the package into the environment that was just made; rules/common.smk says where the checkout lies.
set -euo pipefail
python -m pip install --quiet --no-deps "${TOKENLABEL_SOURCE:?run this through snakemake, which sets it}"
