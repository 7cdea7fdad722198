"""Which crystals belong together, and in which setting: before anything is scaled or merged."""
