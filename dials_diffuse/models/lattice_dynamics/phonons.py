"""What fitted stiffnesses of contacts say: their errors, waves and sound, displacements, motions of neighbours."""

from __future__ import annotations

import numpy as np
from cctbx.eltbx import tiny_pse

from dials_diffuse.models.lattice_dynamics.contact_lattice import ContactLattice
from dials_diffuse.models.lattice_dynamics.prepared_contacts import mesh_mean
from dials_diffuse.models.lattice_dynamics.stiffness import Stiffnesses
from dials_diffuse.structure.crystal import Structure

#: K, at which kT is an energy for frequencies; they go as the root of the temperature
TEMPERATURE = 295.0
#: kT at that temperature over 1 Da Å², 1/s²
_RATE2 = 1.380649e-23 * TEMPERATURE / (1.66053907e-27 * 1e-20)
#: waves of the dispersion along each axis, from the first (for sound) to the border of the zone
_WAVES = np.array([0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5])
#: blocks of a stiffness: displacements, turns, and both
BLOCKS = (("TT", slice(0, 3), slice(0, 3)), ("TR", slice(0, 3), slice(3, 6)), ("RR", slice(3, 6), slice(3, 6)))


class Phonons:
    """Stiffnesses of contacts at some values, with the errors of what follows from them.

    Parameters
    ----------
    model : LatticeDynamics with springs=contacts
    structure : asymmetric unit
    covariance : (p, p) float64, of the parameters; NaN where it is not known
    share : (p,) float64, what of each parameter comes from data, not from a prior; None: not known
    """

    def __init__(self, model, structure: Structure, covariance: np.ndarray, share: np.ndarray | None = None):
        self._model, self._structure, self._covariance, self._share = model, structure, covariance, share
        self.lattice = ContactLattice(model.bodies(structure), model.contacts(structure))
        self.stiffnesses: Stiffnesses = model.stiffnesses(self.lattice)
        self._values = model.logarithms(self.stiffnesses)
        self._scale = model.scale(structure, self.lattice)
        self._k = [k / self._scale for k in self.stiffnesses.matrices(self._values)]
        self._slopes = [dk / self._scale for dk in self.stiffnesses.derivatives(self._values)]

    def record(self) -> dict:
        """All of it, for JSON files; see docs/files.md."""
        return {
            "contacts": self.contacts(),
            "dispersion": self.dispersion(),
            "displacements": self.displacements(),
        }

    def contacts(self) -> list:
        """For each contact its stiffness in kT, Å and radians, with errors, and what touches there."""
        content, n = self.lattice.bodies.content, self.lattice.bodies.n_atoms
        names = np.array(
            [f"{c}/{r}{x}" for c, r, x in zip(content.chain[:n], content.residue_name[:n], content.residue[:n])]
        )
        found = []
        correlations = self._correlations()
        for c, (contact, geometry) in enumerate(zip(self.lattice.contacts, self.lattice.geometries)):
            own, dk = self.stiffnesses.own[c], self._slopes[c]
            variance = np.einsum("pab,pq,qab->ab", dk, self._covariance[np.ix_(own, own)], dk)
            first, second = (list(dict.fromkeys(names[atoms].tolist())) for atoms in contact.pairs.T)
            found.append(
                {
                    "number": c + 1,
                    "bodies": [contact.first + 1, contact.second + 1],
                    "operator": f"{self._structure.space_group(contact.copy).as_xyz()} + {contact.shift}",
                    "n_pairs": contact.n_pairs,
                    "on_axis": contact.swap is not None,
                    "residues": [[name.strip() for name in first], [name.strip() for name in second]],
                    "centre": geometry.centre.tolist(),
                    "axes": geometry.axes.tolist(),
                    "stiffness": self._k[c].tolist(),
                    "esd": np.sqrt(np.maximum(variance, 0.0)).tolist(),
                    "geometric": (geometry.geometric / self._scale).tolist(),
                    "share": self._shares(c),
                    "correlation": correlations[c],
                }
            )
        return found

    def _shares(self, contact: int) -> dict:
        """Mean share of the parameters of each block that comes from data; {} if it is not known."""
        if self._share is None:
            return {}
        own = self.stiffnesses.own[contact]
        result = {}
        for name, rows, columns in BLOCKS:
            size = np.array([np.sum(self.stiffnesses.parameters[i].direction[rows, columns] ** 2) for i in own])
            if size.any():
                result[name] = float(size @ self._share[own] / size.sum())
        return result

    def _correlations(self) -> list:
        """Of the displacements of the centres of the two bodies at each contact: <t t'> / sqrt(<t²> <t'²>)."""
        bodies, mean = self.lattice.bodies, mesh_mean(self._model.mesh, self._structure)
        inverse = np.linalg.inv(self.lattice.matrices(self.lattice.stretches(mean.waves), self._k))
        translations = np.zeros((3 * len(bodies.frames), 6 * len(bodies.frames)))
        for b, frame in enumerate(bodies.frames):
            translations[3 * b : 3 * b + 3, 6 * b : 6 * b + 6] = frame[:3]
        translations = translations[:, bodies.active]
        found = []
        for contact in self.lattice.contacts:
            a, b = contact.first, contact.copy * bodies.n_bodies + contact.second
            first, second = translations[3 * a : 3 * a + 3], translations[3 * b : 3 * b + 3]
            phase = mean.weights * np.exp(-2j * np.pi * (mean.waves @ np.array(contact.shift)))
            across = np.einsum("n,ai,nij,aj->", phase, first, inverse, second, optimize=True).real
            own = [np.einsum("n,ai,nij,aj->", mean.weights, t, inverse, t, optimize=True).real for t in (first, second)]
            found.append(float(across / np.sqrt(own[0] * own[1])))
        return found

    def dispersion(self) -> list:
        """For a*, b*, c*: frequencies (THz) of all waves along them with errors, and the speeds of sound (km/s)."""
        bodies, d = self.lattice.bodies, len(self.lattice.bodies.active)
        root = np.linalg.inv(np.linalg.cholesky(self._masses()))
        reciprocal = np.linalg.inv(bodies.content.orthogonalization)
        found = []
        for axis, name in enumerate(("a*", "b*", "c*")):
            waves = _WAVES[:, None] * np.eye(3)[axis]
            stretches = self.lattice.stretches(waves)
            matrices = root @ self.lattice.matrices(stretches, self._k) @ root.T
            values, vectors = np.linalg.eigh(matrices)
            moves = stretches.reshape(len(waves), -1, d) @ (root.T @ vectors)
            moves = moves.reshape(len(waves), -1, 6, d)
            slopes = np.zeros((len(waves), d, len(self._values)))
            for c, (own, dk) in enumerate(zip(self.stiffnesses.own, self._slopes)):
                x = moves[:, self.lattice.mates_of(c)]
                squares = np.einsum("nhav,nhbv->nvab", x.conj(), x).real
                slopes[:, :, own] += np.einsum("nvab,pab->nvp", squares, dk)
            variance = np.einsum("nvp,pq,nvq->nv", slopes, self._covariance, slopes)
            frequency = np.sqrt(np.maximum(values, 0.0) * _RATE2) / (2 * np.pi) * 1e-12
            error = np.sqrt(np.maximum(variance, 0.0)) / (2 * np.maximum(values, 1e-30)) * frequency
            length = 2 * np.pi * _WAVES[0] * np.linalg.norm(reciprocal[axis])  # 1/Å
            factor = 2 * np.pi * 1e12 / (length * 1e10) / 1e3
            found.append(
                {
                    "along": name,
                    "wave": _WAVES.tolist(),
                    "frequency": frequency.tolist(),
                    "esd": error.tolist(),
                    "sound": (factor * frequency[0, :3]).tolist(),
                    "sound_esd": (factor * error[0, :3]).tolist(),
                    "temperature": TEMPERATURE,
                }
            )
        return found

    def _masses(self) -> np.ndarray:
        """(d, d) Da, of the coordinates of all bodies, of the atoms that the structure has."""
        bodies = self.lattice.bodies
        weight = {element: tiny_pse.table(str(element)).weight() for element in set(bodies.content.element)}
        mass = np.array([weight[element] for element in bodies.content.element]) * bodies.content.occupancy
        modes = bodies.modes(bodies.content.site_cart)
        whole = np.zeros((6 * len(bodies.frames),) * 2)
        for b in range(len(bodies.frames)):
            mine, own = bodies.labels == b, slice(6 * b, 6 * b + 6)
            whole[own, own] = np.einsum("n,nca,ncb->ab", mass[mine], modes[mine], modes[mine])
        return whole[np.ix_(bodies.active, bodies.active)]

    def displacements(self) -> dict:
        """U of residues by the phonons, beside what the file has, Å²: absolute, no scale between them."""
        bodies, mean = self.lattice.bodies, mesh_mean(self._model.mesh, self._structure)
        n = bodies.n_atoms
        covariance, derivatives = self.lattice.mean(mean, self._k, self._slopes)
        modes = bodies.modes(bodies.content.site_cart)[:n]
        atoms = bodies.content.take(np.arange(n))
        by_atom = np.array([self._traces(modes, bodies.labels[:n], m) for m in (covariance, *_each(derivatives))])
        slopes, begin = np.zeros((len(self._values), n)), 1
        for own, part in zip(self.stiffnesses.own, derivatives):
            slopes[own] += by_atom[begin : begin + len(part)]
            begin += len(part)
        keys = [f"{c}/{r}{x}".strip() for c, r, x in zip(atoms.chain, atoms.residue_name, atoms.residue)]
        names = list(dict.fromkeys(keys))
        number = np.array([{name: i for i, name in enumerate(names)}[key] for key in keys])
        counts = np.bincount(number)
        mean_slope = slopes.mean(axis=1)
        variance = float(mean_slope @ self._covariance @ mean_slope)
        return {
            "mean": float(by_atom[0].mean()),
            "esd": float(np.sqrt(max(variance, 0.0))) if np.isfinite(variance) else np.nan,
            "mean_structure": float(atoms.u_iso.mean()),
            "residue": names,
            "u": (np.bincount(number, by_atom[0]) / counts).tolist(),
            "u_structure": (np.bincount(number, atoms.u_iso) / counts).tolist(),
        }

    def _traces(self, modes: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """(n,) third of the trace of what a covariance of all coordinates displaces each atom."""
        active, result = self.lattice.bodies.active, np.zeros(len(labels))
        for b in range(labels.max() + 1):
            own = np.flatnonzero(active // 6 == b)
            mine = np.flatnonzero(labels == b)
            m = modes[mine][:, :, active[own] % 6]
            result[mine] = np.einsum("nca,ab,ncb->n", m, matrix[np.ix_(own, own)].real, m) / 3
        return result


def _each(parts):
    for part in parts:
        yield from part
