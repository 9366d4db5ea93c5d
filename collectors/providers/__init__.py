"""One file per kind of endpoint."""
