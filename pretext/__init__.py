"""What teaches without box labels: one task, one file."""
