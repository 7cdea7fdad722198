"""The report of a fit as a page: models, their parameters and errors, agreement, pictures."""

from __future__ import annotations

import math

from dials_diffuse.fitting.result import Fit, ModelFit
from dials_diffuse.fitting.run import FitResult
from dials_diffuse.report.figures import new_figure
from dials_diffuse.report.fit import (
    centres_note,
    comparison_table,
    model_lines,
    pair_lines,
    shell_table,
    verdict,
)
from dials_diffuse.report.page import embedded, write_page

_CAPTIONS = (
    "Anisotropic part in planes: the data on the left, the best model on the right, mirrored.",
    "Correlations of the displacements of groups, and their size.",
)


def write_fit_page(path, record: dict, result: FitResult, pictures) -> None:
    """Write the report.

    Parameters
    ----------
    record : what ``diffuse_fit.json`` says
    pictures : PNG files of :mod:`report.fit_files`: of planes, and of covariances if there are any; None for none

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    fits, choice = result.fits, result.choice
    best = choice.best
    n = best.statistics["n"], best.statistics["free"]["n"]
    heads, rows = comparison_table(fits)
    if choice.criterion == "free" and len(fits) > 1:
        heads = [*heads, "below the highest"]
        for row, below, error in zip(rows, choice.below, choice.errors):
            row.append(f"{_number(below, '.4f')} ± {_number(error, '.4f')}")
    write_page(
        path,
        "fit.html",
        title=f"dials.diffuse_fit: {best.name}",
        version=record["version"],
        dials_version=record["dials_version"],
        parameters=record["parameters"].strip(),
        summary=[
            ("structure", record["inputs"][0]),
            ("map", record["inputs"][1]),
            ("space group", record["space_group"]),
            ("unit cell", " ".join(f"{x:.6g}" for x in record["unit_cell"])),
            ("voxels per reciprocal cell", "×".join(map(str, record["subdivide"]))),
            ("resolution", f"{record['d_max']:.2f}–{record['d_min']:.2f} Å"),
            ("voxels", f"{n[0]} fitted, {n[1]} free"),
            ("unit of the map", record["units"]),
        ],
        verdict=f"{verdict(choice)}.",
        comparison={"heads": heads, "rows": rows, "best": fits.index(best)},
        note=centres_note(fits),
        shells=embedded(_shells(fits)),
        pictures=[(embedded(path), caption) for path, caption in zip(pictures, _CAPTIONS) if path],
        models=[
            *(_section(fit, model_lines(fit)) | _known(fit) for fit in result.models),
            *(_section(fit, pair_lines(fit)) for fit in result.pairs),
        ],
        settings=[(s.operator, _number(s.cc_anisotropic, ".3f")) for s in result.settings],
    )


def _section(fit: Fit, lines) -> dict:
    """What the page says about any fit."""
    heads, rows = shell_table(fit)
    displacements = [
        [
            d.model,
            _number(d.u_model, ".3f"),
            _number(d.u_structure, ".3f"),
            _number(d.correlation, ".3f"),
            f"{d.n_exceeded} of {d.n_atoms}",
        ]
        for d in fit.displacements
    ]
    return {
        "name": fit.name,
        "warnings": [text.removeprefix(f"{fit.name}: ") for text in fit.warnings],
        "estimates": lines,
        "correlations": None,
        "profiles": [],
        "displacements": {
            "heads": ["", "mean U of the model (Å²)", "of the atoms", "correlation", "atoms that it exceeds"],
            "rows": displacements,
        }
        if displacements
        else None,
        "shells": {"heads": heads, "rows": rows},
    }


def _known(fit: ModelFit) -> dict:
    """How well the parameters of a model are known."""
    names = [*(e.name for e in fit.estimates), "scale"][: len(fit.correlations)]
    return {
        "correlations": {
            "heads": ["", *names],
            "rows": [[name, *(_number(x, ".3f") for x in row)] for name, row in zip(names, fit.correlations)],
        }
        if len(names) > 1
        else None,
        "profiles": [
            {
                "heads": [f"{e.name} ({e.unit})", *(_number(value, ".4g") for value, _ in e.profile)],
                "rows": [["rise", *(_number(rise, ".2f") for _, rise in e.profile)]],
            }
            for e in fit.estimates
            if e.profile
        ],
    }


def _shells(fits):
    """Figure of the correlations in shells of resolution."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for i, fit in enumerate(fits):
        shells = fit.statistics["shells"]
        s = [0.5 * (1 / row["d_max"] + 1 / row["d_min"]) for row in shells]
        axes.plot(s, [row["cc_anisotropic"] for row in shells], color=f"C{i % 10}", label=fit.name)
        axes.plot(s, [row["free"]["cc_anisotropic"] for row in shells], "o", ms=4, color=f"C{i % 10}")
        if i == 0 and any(math.isfinite(row["cc_star"]) for row in shells):
            axes.plot(s, [row["cc_star"] for row in shells], color="0.5", ls="--", label="CC*")
    axes.set(xlabel="1/d (1/Å)", ylabel="correlation, anisotropic part", ylim=(None, 1.02))
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    axes.legend()
    return figure


def _number(value: float, how: str) -> str:
    return f"{value:{how}}" if math.isfinite(value) else "–"
