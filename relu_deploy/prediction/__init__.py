"""Prediction: pictures and texts in; labels, boxes and masks out. The preprocessing and postprocessing of the manifest."""
