"""OpenSSF signatures over bundles."""
