"""Files, and what travels in them: volumes, latents, samples, NIfTI, and how a cohort becomes one of them."""
