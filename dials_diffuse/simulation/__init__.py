"""Images with a known answer: what the beam, the crystal and the detector of an experiment would have recorded."""
