"""The unit room: values, parsing, rules, files, and what is generated from the model."""
