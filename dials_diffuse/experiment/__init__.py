"""DIALS and dxtbx objects turned into plain arrays."""
