"""Architectures: images and queries -> predictions."""
