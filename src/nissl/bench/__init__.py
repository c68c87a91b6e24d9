"""Many runs, one fair comparison: a grid of data sets, label budgets, arms and seeds."""
