"""Checkpoints -> someone else's world, proven by loading them back."""
