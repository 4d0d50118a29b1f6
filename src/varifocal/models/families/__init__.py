"""Model families: what a kind of model needs to know about images."""
