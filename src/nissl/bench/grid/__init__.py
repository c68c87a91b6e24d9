"""The grid file of a bench: which cells it has."""
