"""Masks for a folder of new images."""
