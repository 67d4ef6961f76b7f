"""The planner, which turns a recipe and headers into a plan, and the engine, which carries the plan out."""
