"""Layers: they know shapes and nothing of targets."""
