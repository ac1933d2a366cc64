"""What `config.job` can be, and what a run does around the mathematics."""
