#!/usr/bin/env bash
# Usage: docs/demo.sh [OUTPUT]
#
# From a structure to a diffuse map and back to what is true: 96 images of a lysozyme crystal whose atoms move like a
# liquid are simulated, processed by DIALS as if they were measured, and made into a map, which is compared with the
# motion that was put in. Needs no data. Takes some minutes. Steps that are done already are not repeated.
set -euo pipefail

docs=$(cd "$(dirname "$0")" && pwd)
output=${1:-$docs/../demo-output}
mkdir -p "$output"
cd "$output"
# shellcheck source=steps.sh
. "$docs/steps.sh"

simulation=(dials.diffuse_simulate structure=lysozyme model=llm scan.n_images=96 seed=4)
# the program does not write over images
done_before simulate "${simulation[@]}" || rm -f simulated_1_*.cbf
step simulate "${simulation[@]}"

# What is known of a crystal before it is measured saves dials.index some time; the orientation it has to find.
step import dials.import "simulated_1_*.cbf"
step find_spots dials.find_spots imported.expt
step index dials.index imported.expt strong.refl space_group=P43212 unit_cell=78.5,78.5,37.8,90,90,90 \
  basis_vector_combinations.max_refine=1
step refine dials.refine indexed.expt indexed.refl
step integrate dials.integrate refined.expt refined.refl
step scale dials.scale integrated.expt integrated.refl

repeat=yes # the program itself knows what is done
# the coordinates tell how much the cell scatters: intensities in electrons² per unit cell, as those of the truth
model=$(realpath --relative-to=. "$docs/../dials_diffuse/simulation/data/193l.pdb")
step diffuse_process dials.diffuse_process scaled.expt scaled.refl pdb="$model" reference=truth.nxs \
  merge.statistics.n_shells=10 fit.scale=absolute fit.d_max=10 fit.d_min=2

echo
sed -n '/^Agreement with/,/bins of |s|$/p' diffuse_process.out
echo
echo "Liquid-like motions fitted to the map; the images were made with sigma = 0.3 and gamma = 10 Å:"
sed -n '/^llm:/,/^$/p' diffuse_process.out
echo
sed -n '/^Verdict:/,/^$/p' diffuse_process.out
echo
echo "Everything is in $PWD. The report, the diffuse map, the map that was put in, both in one picture, and an image:"
list dials.diffuse_process.html diffuse_merged.nxs truth.nxs diffuse_merged.png diffuse_fit.html simulated_1_00001.cbf
