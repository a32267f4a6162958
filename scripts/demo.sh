#!/usr/bin/env bash
# Shows the main job on a small real cube: corrupt it, denoise it with the shipped weights, measure before and after.
# Leaves demo_output/noisy.mat, denoised.mat and demo.png in the project's folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

mkdir -p demo_output
step() { printf '\n== %s\n$ %s\n' "$1" "${*:2}"; "${@:2}"; }

step "A real cube: what is in the file" \
    hsidenoise inspect data/samples/superballs.mat
step "Noise: a different sigma on every band, stripes, dead columns, impulses" \
    hsidenoise corrupt data/samples/superballs.mat demo_output/noisy.mat --noise mixture --seed 0
step "Denoise it" \
    hsidenoise denoise demo_output/noisy.mat -o demo_output/denoised.mat --picture demo_output/demo.png
step "Before: noisy against clean" \
    hsidenoise evaluate demo_output/noisy.mat demo_output/noisy.mat
step "After: denoised against clean" \
    hsidenoise evaluate demo_output/denoised.mat demo_output/noisy.mat

printf '\nLook at %s\n' "$ROOT/demo_output/demo.png"
