"""Measures of images, label maps and distributions: arrays in, numbers out."""
