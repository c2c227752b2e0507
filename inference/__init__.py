"""What uses trained networks: snapshots, first stages, drawing, encoding, decoding, publishing and evaluation."""
