"""Nissl: segment biomedical images when there are many images and few masks."""
