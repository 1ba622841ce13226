"""What is true of the machine and the process: who launched it, devices, clocks, terminal."""
