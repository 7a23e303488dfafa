"""Reading, preparing, sampling and augmenting CT scans."""
