"""Predictions, targets and matches -> named losses."""
