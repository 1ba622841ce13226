"""Signals, lost ranks and hangs: a thread alongside training that hears, judges and ends."""
