"""Command-line programs: phil in, library calls, files out."""
