"""Images larger than memory: read, predicted and labelled part by part."""
