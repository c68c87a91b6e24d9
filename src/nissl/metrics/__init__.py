"""How well predictions fit: overlap, surface distance and statistics, as pure functions."""
