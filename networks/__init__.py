"""Networks: pure modules of tensors. They never see a rank, a path, a config or a logger."""
