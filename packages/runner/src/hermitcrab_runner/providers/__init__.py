"""Agent harnesses. Each file brings one; nothing here is imported before it is needed."""
