"""potstill room: collectors."""
