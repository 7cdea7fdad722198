"""Laue averages, half sets and shell statistics."""
