"""The Pyro program."""
