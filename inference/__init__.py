"""What uses trained networks: snapshots, first stages, generation, encoding, decoding and their evaluation."""
