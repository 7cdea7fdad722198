"""Ensembles of structures."""
