"""Run the cells of a bench: checks, costs, worker pools, clusters, results."""
