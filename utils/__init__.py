"""The lowest layer: configuration, runs, processes and logging. Imports nothing else of this project."""
