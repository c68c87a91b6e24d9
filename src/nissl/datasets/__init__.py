"""Public data sets, downloads and simulated images."""
