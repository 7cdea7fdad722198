"""The dxtbx format of simulated images whose geometry a mini-CBF header cannot say.

Such a file (written by :mod:`dials_diffuse.experiment.cbf`) has all panels in one array, and the dxtbx models as JSON
in header lines that begin with ``MARK``, to be joined. The usual header lines say the rest: image, angles, exposure.
dxtbx finds the class through the entry point in setup.py; it is imported for every CBF file, so it imports little.
"""

from __future__ import annotations

import json

from dxtbx.format.FormatCBFMini import FormatCBFMini
from dxtbx.model.beam import BeamFactory
from dxtbx.model.detector import DetectorFactory
from dxtbx.model.goniometer import GoniometerFactory

from dials_diffuse.errors import DiffuseError

MARK = "# dials_diffuse models "
SCHEMA = "dials_diffuse.models/1"


def panel_slices(sizes) -> list:
    """Where the panels are in the array: below each other in their order, each beginning in the first column.

    sizes : (nx, ny) of each panel

    Returns
    -------
    list of (rows, columns), two slices per panel; the array is as wide as the widest panel
    """
    slices, row = [], 0
    for nx, ny in sizes:
        slices.append((slice(row, row + ny), slice(0, nx)))
        row += ny
    return slices


class FormatCBFMiniDiffuse(FormatCBFMini):
    """A mini-CBF that carries its dxtbx models; raw data are a tuple of one array per panel."""

    @staticmethod
    def understand(image_file):
        return "\n" + MARK in FormatCBFMini.get_cbf_header(image_file)

    def _start(self):
        super()._start()
        lines = [line.rstrip("\r") for line in self._cif_header.split("\n") if line.startswith(MARK)]
        try:
            content = json.loads("".join(line[len(MARK) :] for line in lines))
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                raise ValueError(f"not of the schema {SCHEMA}")
            self._models = (
                GoniometerFactory.from_dict(content["goniometer"]),
                DetectorFactory.from_dict(content["detector"]),
                BeamFactory.from_dict(content["beam"]),
            )
        except Exception as error:  # dxtbx raises many types for malformed models
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DiffuseError(
                f"{self._image_file}: the models in its header cannot be read ({reason}); write the image again, or "
                f"read it with the version of dials_diffuse that wrote it"
            ) from None
        self._check_size()

    def _check_size(self):
        sizes = [panel.get_image_size() for panel in self._models[1]]
        expected = max(nx for nx, _ in sizes), sum(ny for _, ny in sizes)
        names = "X-Binary-Size-Fastest-Dimension", "X-Binary-Size-Second-Dimension"
        found = tuple(int(self._cif_header_dictionary[name]) for name in names)
        if found != expected:
            raise DiffuseError(
                f"{self._image_file}: {found[0]} x {found[1]} pixels, the panels in its header need "
                f"{expected[0]} x {expected[1]}; write the image again"
            )

    def _goniometer(self):
        return self._models[0]

    def _detector(self):
        return self._models[1]

    def _beam(self):
        return self._models[2]

    def get_raw_data(self):
        if self._raw_data is None:
            stacked = self._read_cbf_image()
            sizes = [panel.get_image_size() for panel in self._models[1]]
            self._raw_data = tuple(stacked[rows, columns] for rows, columns in panel_slices(sizes))
        return self._raw_data
