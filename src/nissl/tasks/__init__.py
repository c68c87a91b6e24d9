"""What a network is to do with images: how targets are found and compared, and how predictions are measured."""
