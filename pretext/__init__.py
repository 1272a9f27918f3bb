"""Pretext tasks, which train without box labels: one file per task."""
