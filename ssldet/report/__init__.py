"""Run folder -> pictures, curves and one page to send."""
