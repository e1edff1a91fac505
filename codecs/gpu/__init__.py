"""Decoding on a GPU, in Triton. Imported only where it is asked for: `import kvstore` needs neither torch nor Triton."""
