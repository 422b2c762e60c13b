"""The options of a bundle: what there is, and what a run refuses."""
