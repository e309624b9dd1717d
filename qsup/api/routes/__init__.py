"""Every route of the API, one module per noun, in one declarative table."""
