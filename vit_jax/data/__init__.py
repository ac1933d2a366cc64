"""From a data set to batches of uint8 images."""
