"""A run's folder and what is in it: checkpoints, log, record; how it is stopped and watched."""
