"""Trains one configuration under every strategy and compares what came out.

Each variant is a real run of the command line in processes of its own, so what is compared is what
a user would get. One process is the reference.
"""
