"""nnU-Net's files: its checkpoints and plans, read without executing them, and written."""
