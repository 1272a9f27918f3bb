"""Whole runs of the pretext tasks, as functions that read as documents."""
