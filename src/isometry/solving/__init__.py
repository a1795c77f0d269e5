"""Give each weight the scale that it needs at the moment it is first read, in one pass through the model."""
