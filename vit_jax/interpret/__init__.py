"""What a model looks at: arrays, figures, the report and the page."""
