"""What makes requests faster on a GPU: kernels that do several operations at once, and captured graphs of networks."""
