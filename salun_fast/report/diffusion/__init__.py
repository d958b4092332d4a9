"""The page and the tables of diffusion runs."""
