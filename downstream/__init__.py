"""What uses box labels: annotation files, tasks, metrics and other people's formats."""
