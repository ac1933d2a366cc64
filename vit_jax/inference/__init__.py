"""A trained model at work: the classifier, and files for other programs."""
