"""File formats: raster images, TIFF, DICOM, NIfTI, and what mask values mean."""
