"""Detections -> named numbers that agree with the official ones."""
