"""The only loop, its checkpoints, its schedule and its processes."""
