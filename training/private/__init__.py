"""Training with differential privacy: accounting, the private step, its checks, and what leaves a run."""
