"""What compares: protocols, runner and results."""
