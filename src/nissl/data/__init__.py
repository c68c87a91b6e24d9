"""From a folder to batches: find cases, check them, split them by patient, serve them."""
