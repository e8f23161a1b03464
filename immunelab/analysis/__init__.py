"""Pure functions from recorded frames to read-outs: outcomes, collapse curves, intervals."""
