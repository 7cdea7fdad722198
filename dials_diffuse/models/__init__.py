"""Models of diffuse scattering: a folder or a file for each, one table of all."""
