"""How well the masks fit: overlap, surface distance, intervals."""
