"""Finding the parts of any language model by watching a probe of random tokens go through it."""
