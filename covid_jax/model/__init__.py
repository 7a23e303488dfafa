"""The networks, their convolutions and their loss."""
