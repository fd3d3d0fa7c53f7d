"""Images and texts in, labels, boxes and masks out; the web page."""
