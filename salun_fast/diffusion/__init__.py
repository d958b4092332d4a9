"""What diffusion models add: noise and targets, guidance, class-conditional sampling, encodings."""
