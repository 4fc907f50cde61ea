"""What a container is made from: config, instructions, skills, packages, mounts."""
