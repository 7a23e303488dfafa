"""What others wrote, set up as they set it up, to compare with."""
