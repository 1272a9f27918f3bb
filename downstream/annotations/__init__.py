"""Annotation files -> samples."""
