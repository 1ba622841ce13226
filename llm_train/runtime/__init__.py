"""Describes the machine and the process: the launcher, the devices, the clocks, the terminal."""
