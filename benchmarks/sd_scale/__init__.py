"""SalUn at the size of Stable Diffusion's UNet on a CPU: ``python -m benchmarks.sd_scale``."""
