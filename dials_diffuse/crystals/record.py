"""The choice of crystals in numbers for output.json."""

from __future__ import annotations

import numpy as np

from dials_diffuse.crystals.choice import CrystalChoice


def crystals_record(choice: CrystalChoice | None) -> dict | None:
    """Every decision and what it is from, null where there was nothing to choose; see docs/files.md."""
    if choice is None:
        return None
    n_kept = np.cumsum([c.kept for c in choice.crystals])
    return {
        "operators": choice.operators,
        "usual_correlation": choice.usual,
        "experiments": [
            {
                "crystal": k,
                "file": c.path,
                "experiment": c.number,
                "identifier": c.identifier,
                "kept": c.kept,
                "sweep": int(n_kept[k]) - 1 if c.kept else None,
                "operator": c.operator,
                "verdict": c.verdict,
                "reason": c.reason,
                "unit_cell": c.unit_cell,
                "cell_cluster": c.cell_cluster,
                "cluster": c.cluster,
                "suggested_operator": c.suggested,
                "correlation": c.correlation,
                "esd": c.esd,
                "correlation_as_given": c.correlation_as_given,
                "observed_correlation": c.observed,
                "n_common": c.common,
            }
            for k, c in enumerate(choice.crystals)
        ],
        "pairs": {
            "crystals": choice.compared,
            "correlation": _rounded(choice.corrected),
            "esd": _rounded(choice.esd),
            "observed_correlation": _rounded(choice.observed),
            "n_common": choice.common,
        },
    }


def indexed_otherwise(choice: CrystalChoice | None) -> list:
    """Crystals that agree better with the others after a change of basis, whether it was applied or not."""
    if choice is None:
        return []
    return [
        {
            "crystal": k,
            "operator": c.suggested,
            "applied": c.operator == c.suggested,
            "cc": c.correlation,
            "cc_as_given": c.correlation_as_given,
        }
        for k, c in enumerate(choice.crystals)
        if c.suggested not in (None, choice.operators[0])
    ]


def _rounded(matrix: np.ndarray) -> np.ndarray:
    return np.round(matrix, 4)
