"""Data for models: shipped data sets, folders of images, arrays and texts."""
