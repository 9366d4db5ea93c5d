"""What `potstill init` writes, and the demo."""
