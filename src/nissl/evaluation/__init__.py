"""Measure a run and compare runs."""
