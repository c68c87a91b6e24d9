"""The run folder: what it records, its checkpoints, and the runs of several seeds."""
