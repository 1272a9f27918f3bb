"""Whole runs of the labelled tasks, as functions that read as documents."""
