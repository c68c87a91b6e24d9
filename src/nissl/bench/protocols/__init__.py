"""Published protocols of training, each in a file of its own. Only here may test masks be opened by a training."""
