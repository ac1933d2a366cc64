"""What is trained, and how: objectives, optimizers, the step, and the devices."""
