"""What a run needs and takes on devices that need not be there."""
