"""Fitted lattice dynamics on the page and as arrays: dispersion, contacts with the residues that touch, U."""

from __future__ import annotations

import numpy as np

from dials_diffuse.report.fit_contacts import CONTACT_NOTE, mean_stiffness
from dials_diffuse.report.section import COLOURS, Material, Plot, Section, Table, line, number

#: branches of the dispersion that are drawn, the lowest ones, and residues of a contact that are named
_BRANCHES = 12
_RESIDUES = 12
#: from the start of one direction to that of the next; waves end at 0.5
_NEXT = 0.6
_BLOCKS = ("TT", "TR", "RR")


def phonons(material: Material) -> list:
    """A section of each model, or part of a sum, that has contacts with stiffnesses."""
    return [
        _section(f"phonons-{i}", model["model"], details)
        for i, model in enumerate(material.record["models"])
        for details in model.get("details", ())
        if "contacts" in details
    ]


def phonon_arrays(fits) -> dict:
    """Arrays for a ``.npz`` file, {} where no model has contacts; see docs/lattice_dynamics.md.

    fits : ModelFit of each model
    """
    arrays: dict = {}
    for i, fit in enumerate(fits):
        for details in fit.details:
            if "contacts" in details:
                found = {**_arrays(details), "parameters": np.array([e.name for e in fit.estimates])}
                found["covariance"] = fit.covariance[: len(fit.estimates), : len(fit.estimates)]
                arrays |= {f"{i}_{name}": array for name, array in found.items()}
    return {"models": np.array([fit.name for fit in fits]), **arrays} if arrays else {}


def _arrays(details: dict) -> dict:
    contacts, dispersion, u = details["contacts"], details["dispersion"], details["displacements"]
    of_contacts = ("stiffness", "esd", "geometric", "centre", "axes", "correlation")
    found = {name: np.array([contact[name] for contact in contacts], dtype=float) for name in of_contacts}
    found["wave"] = np.array(dispersion[0]["wave"])
    found |= {name: np.array([one[name] for one in dispersion]) for name in ("frequency", "sound", "sound_esd")}
    found["frequency_esd"] = np.array([one["esd"] for one in dispersion])
    return found | {name: np.array(u[name]) for name in ("residue", "u", "u_structure")}


def _section(name: str, title: str, details: dict) -> Section:
    return Section(
        name,
        f"Phonons of {title}",
        "Bodies that push each other at their contacts. All numbers are absolute if the scale of the map is.",
        lines=_lines(details),
        plots=(_dispersion(name, details["dispersion"]), _displacements(name, details["displacements"])),
        tables=(_contacts(details["contacts"]),),
    )


def _lines(details: dict) -> list:
    u = details["displacements"]
    lines = [
        f"Mean U by phonons: {number(u['mean'], '.4f')} ± {number(u['esd'], '.4f')} Å²; "
        f"of the structure: {number(u['mean_structure'], '.4f')} Å²."
    ]
    for one in details["dispersion"]:
        speeds = (f"{number(v, '.2f')} ± {number(e, '.2f')}" for v, e in zip(one["sound"], one["sound_esd"]))
        lines.append(f"Sound along {one['along']} at {one['temperature']:g} K: {', '.join(speeds)} km/s.")
    return lines


def _dispersion(name: str, dispersion: list) -> Plot:
    """Curves of all branches as one line, and their bands as one shape, with gaps between."""
    x, y, band_x, band_y = [], [], [], []
    for direction, one in enumerate(dispersion):
        waves = [_NEXT * direction + wave for wave in one["wave"]]
        for branch in range(min(_BRANCHES, len(one["frequency"][0]))):
            frequency, esd = ([row[branch] for row in one[key]] for key in ("frequency", "esd"))
            x += [*waves, None]
            y += [*frequency, None]
            if None in esd or not np.all(np.isfinite(esd)):
                continue
            band_x += [*waves, *reversed(waves), None]
            upper, lower = ([f + sign * e for f, e in zip(frequency, esd)] for sign in (1, -1))
            band_y += [*upper, *(max(value, 0.0) for value in reversed(lower)), None]
    band = {"fill": "toself", "fillcolor": "rgba(0,114,178,0.25)", "line": {"width": 0}, "hoverinfo": "skip"}
    middles = [_NEXT * i + 0.25 for i in range(len(dispersion))]
    return Plot(
        f"{name}-dispersion",
        "Dispersion",
        f"Frequencies along three directions, from the lattice point to the border of the zone; the {_BRANCHES} lowest "
        "branches. The bands are one e.s.d. of the posterior: of data and prior together.",
        [line("± e.s.d.", band_x, band_y, "lines", **band), line("frequency", x, y, line={"color": COLOURS[0]})],
        {
            "xaxis": {"tickvals": middles, "ticktext": [one["along"] for one in dispersion]},
            "yaxis": {"title": {"text": "frequency (THz)"}, "rangemode": "tozero"},
        },
    )


def _displacements(name: str, found: dict) -> Plot:
    names, x = found["residue"], list(range(len(found["residue"])))
    every = max(1, len(names) // 12)
    return Plot(
        f"{name}-u",
        "U by phonons, and U of the structure",
        "Mean of the atoms of each residue. No scale is fitted between the two: what the file has beyond the phonons "
        "are internal motions and disorder. Phonons above the file mean stiffnesses that are too low.",
        [
            line("structure (B/8π²)", x, found["u_structure"], "lines", text=names, hoverinfo="text+y"),
            line("phonons", x, found["u"], "lines", text=names, hoverinfo="text+y"),
        ],
        {
            "xaxis": {"tickvals": x[::every], "ticktext": names[::every]},
            "yaxis": {"title": {"text": "U (Å²)"}, "rangemode": "tozero"},
        },
    )


def _contacts(contacts: list) -> Table:
    heads = ["contact", "second body", "pairs", "t (kT/Å²)", "±", "r (kT)", "±", *_BLOCKS, "correlation"]
    rows = []
    for contact in contacts:
        row = [f"{contact['number']}", contact["operator"], f"{contact['n_pairs']}"]
        for begin in (0, 3):
            value, esd = mean_stiffness(contact, begin)
            row += [number(value, ".4g"), number(esd, ".2g")]
        row += [number(contact["share"].get(block), ".2f") for block in _BLOCKS]
        row += [number(contact["correlation"], ".2f"), *map(_named, contact["residues"])]
        rows.append(row)
    return Table([*heads, "residues that touch", "and of the other"], rows, f"Contacts ({CONTACT_NOTE})")


def _named(residues: list) -> str:
    more = len(residues) - _RESIDUES
    return ", ".join(residues[:_RESIDUES]) + (f" and {more} more" if more > 0 else "")
