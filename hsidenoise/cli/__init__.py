"""The command line: options in, lines out."""
