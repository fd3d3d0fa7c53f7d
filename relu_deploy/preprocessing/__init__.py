"""Preprocessing of pictures: its description in the manifest, presets by the name of a library, and the one implementation."""
