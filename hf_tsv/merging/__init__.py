"""Recipe and headers to a plan, and the engine that works through it."""
