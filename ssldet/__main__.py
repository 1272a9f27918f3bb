"""python -m ssldet -> the command line."""

from ssldet.cli import main

main()
