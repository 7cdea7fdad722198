"""From DIALS or xia2 output to a verdict in one call, by hand or with nobody watching."""
