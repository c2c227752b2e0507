"""Ground floor: files, formats, logging and processes. Imports nothing else of this project."""
