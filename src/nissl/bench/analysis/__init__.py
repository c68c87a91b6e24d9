"""What the results of a bench say: tables, gains, intervals."""
