#!/usr/bin/env bash
# Installs the package into the environment that was just made; rules/common.smk says where the checkout lies.
# From a copy: pip builds where the source is, and the checkout may be another user's, or hold an older build.
set -euo pipefail
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cd "${TOKENLABEL_SOURCE:?run this through snakemake, which sets it}"
cp -r pyproject.toml README.md LICENSE src "$copy"
python -m pip install --quiet --no-deps "$copy"
