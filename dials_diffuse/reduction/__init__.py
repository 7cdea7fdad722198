"""From pixels to voxel sums: masks, corrections, background, outliers."""
