"""Atoms, form factors and structure factors: what models know of the crystal (iotbx, mmtbx, eltbx)."""
