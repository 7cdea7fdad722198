"""Pictures of maps and tables."""
