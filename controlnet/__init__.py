"""ControlNet in a container: from prompt, image and conditioner to pictures whose structure follows the image."""
