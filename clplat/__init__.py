"""clplat: continual-learning experiments."""
