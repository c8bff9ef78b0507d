"""Model families: what Stable Diffusion 1 and Stable Diffusion XL do not share. A manifest names the family."""
