"""The terms documents, one version a file."""
