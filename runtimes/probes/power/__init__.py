"""Power sources: one file each. Files and text in, timestamped readings out; NumPy and the standard library only."""
