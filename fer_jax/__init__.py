"""Seven emotions in faces with JAX and Flax."""
