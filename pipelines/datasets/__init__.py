"""Sources of raw data, one module a kind."""
