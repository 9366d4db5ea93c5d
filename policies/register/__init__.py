"""The terms documents, one TOML file per version; policies.documents reads them."""
