"""potstill room: trainer."""
