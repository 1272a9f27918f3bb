"""Recipes of the pretext tasks: functions that return complete runs."""
