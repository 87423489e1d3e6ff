"""Ways through the model: observing states, layer by layer, prompts only, and a head in float32."""
