"""What a model is worth: predictions, metrics with intervals, heat maps, pages."""
