"""What the package needs of the machine: devices, memory, files, processes."""
