"""Two runs side by side: what differs first, by how much, and why."""
