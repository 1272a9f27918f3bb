"""Comparisons of pretraining methods: suites, runner and results."""
