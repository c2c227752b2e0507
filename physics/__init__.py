"""Analytic anatomy and imaging physics: pure functions of numbers and arrays."""
