"""The training loop, its schedule, its processes and its signals."""
