"""Models -> files in other libraries' formats, proven by loading them back."""
