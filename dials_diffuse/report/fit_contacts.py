"""Contacts of a crystal and their stiffnesses as text: what pushes, how hard, and how much of it the data say."""

from __future__ import annotations

import numpy as np

from dials_diffuse.fitting.result import ModelFit
from dials_diffuse.report.tables import Column, text_table


def mean_stiffness(contact: dict, begin: int) -> tuple:
    """A third of the trace of the displacements (0) or turns (3), and its error as if the three had the same sign."""
    own = range(begin, begin + 3)
    esd = np.array([contact["esd"][i][i] for i in own], dtype=float)  # None of a JSON file becomes NaN
    return float(np.mean([contact["stiffness"][i][i] for i in own])), float(np.sqrt(np.mean(esd**2)))


def _share(contact: dict, block: str) -> float:
    return contact["share"].get(block, np.nan)


_COLUMNS = (
    Column("contact", 7, "d", lambda c: c["number"]),
    Column("pairs", 7, "d", lambda c: c["n_pairs"]),
    Column("t kT/Å²", 10, ".4g", lambda c: mean_stiffness(c, 0)[0]),
    Column("±", 8, ".2g", lambda c: mean_stiffness(c, 0)[1]),
    Column("r kT", 10, ".4g", lambda c: mean_stiffness(c, 3)[0]),
    Column("±", 8, ".2g", lambda c: mean_stiffness(c, 3)[1]),
    Column("TT", 7, ".2f", lambda c: _share(c, "TT")),
    Column("TR", 7, ".2f", lambda c: _share(c, "TR")),
    Column("RR", 7, ".2f", lambda c: _share(c, "RR")),
    Column("corr.", 7, ".2f", lambda c: c["correlation"]),
    Column(" second body", -22, "", lambda c: f" {c['operator']}"),
)

CONTACT_NOTE = (
    "t: displacements, r: turns, mean of three axes with the rms error; TT, TR, RR: how much of the stiffness to "
    "displacements, of both, and to turns comes from the data, not from the prior; corr.: of the displacements of both"
)


def prior_lines(fit: ModelFit) -> list:
    """What a prior did to a fit; empty if there was none."""
    if fit.prior is None:
        return []
    number = len(fit.prior.share)
    return [
        f"strength of the prior = {fit.prior.strength:g}",
        f"{fit.prior.n_effective:.1f} of {number} parameters come from the data, not the prior",
        f"spread of the true parameters, as far as the data tell: {fit.prior.spread:.2f}",
    ]


def contact_text(details: dict) -> str:
    """Table of contacts, sound and displacements of a model that has them, else ``""``."""
    if "contacts" not in details:
        return ""
    lines = [text_table(_COLUMNS, details["contacts"]), CONTACT_NOTE]
    for one in details["dispersion"]:
        speeds = ", ".join(f"{v:.2f} ± {e:.2f}" for v, e in zip(one["sound"], one["sound_esd"]))
        lines.append(f"Sound along {one['along']} at {one['temperature']:g} K: {speeds} km/s")
    u = details["displacements"]
    lines.append(
        f"Mean U by phonons: {u['mean']:.4f} ± {u['esd']:.4f} Å²; of the structure: {u['mean_structure']:.4f} Å²"
    )
    return "\n".join(lines)


def prior_record(fit: ModelFit) -> dict:
    """What the JSON file says about a prior; {} if there was none."""
    if fit.prior is None:
        return {}
    names = ("strength", "free", "work", "held_out")
    trials = [dict(zip(names, trial)) for trial in fit.prior.trials]
    share = {e.name: float(x) for e, x in zip(fit.estimates, fit.prior.share)}
    prior = {"strength": fit.prior.strength, "trials": trials, "n_effective": fit.prior.n_effective}
    prior |= {"spread": fit.prior.spread, "share": share}
    return {"prior": prior}
