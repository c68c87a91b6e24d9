"""Masks for whole images and folders of images."""
