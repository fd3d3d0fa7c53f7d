"""HTML report pages, one file a verb, from the same dictionaries that `--json` writes, and the charts in them."""
