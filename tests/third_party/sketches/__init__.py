"""A package that extends ssldet from outside: everything here is found by entry points."""
