"""What learns: networks from images to logits, by name or by dotted path."""
