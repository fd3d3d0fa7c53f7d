"""Tables for the terminal, one file a verb, from the same dictionaries that `--json` writes."""
