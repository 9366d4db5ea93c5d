"""potstill room: storage."""
