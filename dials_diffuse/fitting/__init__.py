"""From a map to a model of the motions: fits with error bars, checked on voxels that were left out."""
