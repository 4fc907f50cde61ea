"""The contract between host and runner: frames, limits and versions. Stdlib only; imported by both sides."""
