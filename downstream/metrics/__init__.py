"""Detections -> named figures that agree with the official ones."""
