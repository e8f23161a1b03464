"""What a run is and where it is: spec, status, journal, numerics. No torch, no DuckDB."""
