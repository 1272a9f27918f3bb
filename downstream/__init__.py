"""Everything that uses box labels: annotation files, labelled tasks, metrics, import and export of other formats."""
