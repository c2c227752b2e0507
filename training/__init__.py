"""Training: the kimg-tick loop, tasks, losses, datasets and what goes into snapshots."""
