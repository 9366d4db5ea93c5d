"""potstill room: policies."""
