#!/usr/bin/env bash
# Usage: docs/snase.sh [DATA] [OUTPUT]
#
# From images to a diffuse map: 96 images of a staphylococcal nuclease crystal (Wall, Ealick & Gruner, 1997) through
# DIALS, then through the programs of dials_diffuse. DATA holds snase/images/; the default is $DIALS_DIFFUSE_DATA, else
# ../shared/data beside the checkout. Takes some minutes. Steps that are done already are not repeated.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
data=${1:-${DIALS_DIFFUSE_DATA:-$checkout/../shared/data}}
output=${2:-$checkout/demo-output/snase}

if [ ! -d "$data/snase/images" ]; then
  cat <<MESSAGE
This needs diffraction images, and there is no $data/snase/images.
It is made for the staphylococcal nuclease images that are distributed with lunus (github.com/lanl/lunus): put them,
packed with bzip2, as snc_newhead_00001.img.bz2 and so on in a folder snase/images, and say where that is:

    make snase DIALS_DIFFUSE_DATA=/path/to/data
MESSAGE
  exit 0
fi
images=$(cd "$data/snase/images" && pwd)
mkdir -p "$output"
cd "$output"

# shellcheck source=steps.sh
. "$checkout/docs/steps.sh"

# Packed images would be unpacked by each of the steps.
unpack() {
  mkdir -p images
  python3 - "$1" <<'PYTHON'
import bz2, pathlib, sys

for packed in pathlib.Path(sys.argv[1]).glob("*.img.bz2"):
    pathlib.Path("images", packed.stem).write_bytes(bz2.decompress(packed.read_bytes()))
PYTHON
}
step unpack unpack "$images"

# The headers do not say how the crystal was turned: 1° per image, about the horizontal.
step import dials.import template="$PWD/images/snc_newhead_#####.img" convert_stills_to_sequences=True \
  geometry.goniometer.axes=1,0,0 geometry.scan.oscillation=0,1
step find_spots dials.find_spots imported.expt
step index dials.index imported.expt strong.refl space_group=P41 unit_cell=48.4,48.4,63.3,90,90,90
step refine dials.refine indexed.expt indexed.refl scan_varying=False
step integrate dials.integrate refined.expt refined.refl prediction.d_min=1.6

repeat=yes
step diffuse_integrate dials.diffuse_integrate integrated.expt integrated.refl
step diffuse_scale dials.diffuse_scale diffuse_integrated.h5
step diffuse_merge dials.diffuse_merge diffuse_scaled.h5

echo
echo "Everything is in $PWD. The diffuse map:"
list diffuse_merged.nxs diffuse_merged.png diffuse_scaled.png
