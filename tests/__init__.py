"""The tests, one file per module, and what they stand on."""
