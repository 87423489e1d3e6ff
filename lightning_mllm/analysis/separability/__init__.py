"""Whether perceptual and textual tokens can be told apart, layer by layer."""
