"""Images: made, listed, unpacked, removed."""
