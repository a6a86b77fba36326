"""How a structure moves the entities."""
