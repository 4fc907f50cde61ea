"""The host's end of a container's link: its socket, what frames mean, and what is handed over on it."""
