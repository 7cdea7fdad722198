"""Scale models: what the experiment did to the intensities, and undoing it."""
