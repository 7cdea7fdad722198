"""Liquid-like motions."""
