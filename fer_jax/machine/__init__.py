"""The machine a run is on: devices, processes, memory."""
