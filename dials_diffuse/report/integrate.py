"""An integration: the record for programs."""

from __future__ import annotations

from dataclasses import asdict

from dials_diffuse.files.record import grid_record
from dials_diffuse.reduction.integrate import IntegrationResult


def integration_record(result: IntegrationResult) -> dict:
    """Content of ``output.json``, schema ``dials.diffuse_integrate/1``."""
    grid = result.grid
    return {
        **grid_record(grid),
        "hall_symbol": grid.hall_symbol,
        "d_min": grid.d_min,
        "d_max": grid.d_max,
        "n_observations": result.n_observations,
        "n_images_used": sum(e.n_images for e in result.experiments),
        "experiments": [asdict(e) for e in result.experiments],
    }
