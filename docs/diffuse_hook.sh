#!/usr/bin/env bash
# For the script that a beamline runs after its automatic processing: a map of the diffuse scattering and a verdict.
#
#   DIALS_DIFFUSE_RUN      folder of a xia2 or DIALS run; needed
#   DIALS_DIFFUSE_OUTPUT   folder for the results; default: diffuse, in that folder
#   DIALS_DIFFUSE_PDB      coordinates, if there are any
#   DIALS_DIFFUSE_OPTIONS  further parameters, for example "nproc=8 images.root=/data/visit"
#
# Prints one line, the verdict and the reason for it, and leaves the program's own exit code. What the program prints goes
# to diffuse_hook.out in the folder of the results.
set -euo pipefail

run=${DIALS_DIFFUSE_RUN:?set DIALS_DIFFUSE_RUN to the folder of a xia2 or DIALS run}
output=${DIALS_DIFFUSE_OUTPUT:-$run/diffuse}
mkdir -p "$output"
options=()
if [ -n "${DIALS_DIFFUSE_PDB:-}" ]; then options+=("pdb=$DIALS_DIFFUSE_PDB"); fi
# shellcheck disable=SC2206 # several parameters in one variable
options+=(${DIALS_DIFFUSE_OPTIONS:-})

status=0
dials.diffuse_process "$run" "output.directory=$output" "${options[@]}" >"$output/diffuse_hook.out" 2>&1 || status=$?
if [ $status = 0 ]; then
  sed -n '/^Verdict: /{s///; s/ (.*//; N; s/\n */: /; p; q;}' "$output/diffuse_hook.out"
else
  tail -n 1 "$output/diffuse_hook.out" >&2
fi
exit $status
