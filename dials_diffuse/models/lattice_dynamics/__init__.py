"""Phonons of rigid molecules."""
