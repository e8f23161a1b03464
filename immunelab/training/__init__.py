"""Everything that touches tensors: the one loop, the gradient algebra, losses, activations, models."""
