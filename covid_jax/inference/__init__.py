"""From a trained network to masks of whole scans."""
